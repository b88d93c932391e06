"""Whether a tracking server or a database answers, found out within seconds."""

import mlflow
import sqlalchemy

from cnnlab.errors import LabError, first_line
from cnnlab.tracking.mlflow_internals import probe
from cnnlab.tracking.offline import spool

HEALTH_TIMEOUT = 10  # seconds; an unreachable server is reported within 15
# By a word of what a connection failed with; MLflow's own settings.
ADVICE = {
    "CERTIFICATE_VERIFY_FAILED": "Name the file of the authority that signed the server's certificate: "
    "MLFLOW_TRACKING_SERVER_CERT_PATH, or REQUESTS_CA_BUNDLE for other programs too.",
    "SSL": "If it asks for a client's certificate, name its file: MLFLOW_TRACKING_CLIENT_CERT_PATH. "
    "If it speaks no TLS, write http://.",
    "ProxyError": "Correct HTTPS_PROXY and HTTP_PROXY, or name the server in NO_PROXY.",
}


def expect_reachable(uri) -> None:
    """Answer quickly for a server that is down; MLflow's own client would retry for minutes.

    Raises:
        LabError: it does not answer.
    """
    try:
        probe(uri, HEALTH_TIMEOUT)
        spool.remember_reached(uri)
    except (OSError, ValueError, mlflow.MlflowException) as error:
        advice = "Start the server, correct the address, or unset the variable to use ./mlruns."
        raise LabError(
            f"Expected an MLflow server at {uri} (MLFLOW_TRACKING_URI). Received no answer: {first_line(error)}. "
            + next((said for word, said in ADVICE.items() if word in str(error)), advice)
        ) from error


def expect_database(uri) -> None:
    """Answer quickly for a database that is away; MLflow would try for minutes.

    Raises:
        ModuleNotFoundError: its driver is missing.
        SQLAlchemyError: it does not answer, or refuses.
    """
    # Which other databases' drivers call otherwise.
    seconds = {"connect_timeout": HEALTH_TIMEOUT} if uri.startswith(("postgresql", "mysql")) else {}
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=seconds)
    engine.connect().close()
