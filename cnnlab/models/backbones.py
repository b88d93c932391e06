"""List the `keras.applications` networks that can be backbones: image sizes, preprocessing and stages of each.

As of Keras 3.15.1. A preprocessing of "inside" means that the network has its own; the others are the modes of
`keras.applications.imagenet_utils.preprocess_input`. Sizes are pixels a side: the smallest that the network takes, and
the one that the ImageNet weights were trained at. Parameters are without the top. A network with depthwise convolutions
(column dw) is no faster in bfloat16 on a CPU. The column "stages" names the layer after which each stage starts, from
the top of the network down; the lowest stage starts at the input and is not in the table.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE = """
build             prepr. min usu  parameters dw  stages
VGG16             caffe   32 224    14714688 no  block4_pool block3_pool block2_pool block1_pool
VGG19             caffe   32 224    20024384 no  block4_pool block3_pool block2_pool block1_pool
ResNet50          caffe   32 224    23587712 no  conv4_block6_out conv3_block4_out conv2_block3_out pool1_pad
ResNet101         caffe   32 224    42658176 no  conv4_block23_out conv3_block4_out conv2_block3_out pool1_pad
ResNet152         caffe   32 224    58370944 no  conv4_block36_out conv3_block8_out conv2_block3_out pool1_pad
ResNet50V2        tf      32 224    23564800 no  conv4_block5_out conv3_block3_out conv2_block2_out pool1_pad
ResNet101V2       tf      32 224    42626560 no  conv4_block22_out conv3_block3_out conv2_block2_out pool1_pad
ResNet152V2       tf      32 224    58331648 no  conv4_block35_out conv3_block7_out conv2_block2_out pool1_pad
DenseNet121       torch   32 224     7037504 no  pool4_conv pool3_conv pool2_conv conv1_relu
DenseNet169       torch   32 224    12642880 no  pool4_conv pool3_conv pool2_conv conv1_relu
DenseNet201       torch   32 224    18321984 no  pool4_conv pool3_conv pool2_conv conv1_relu
InceptionV3       tf      75 299    21802784 no  mixed7 mixed2 mixed0
InceptionResNetV2 tf      75 299    54336736 no  block17_20_ac block35_10_ac mixed_5b
Xception          tf      71 299    20861480 yes block14_sepconv1 block1_conv2_act
MobileNet         tf      32 224     3228864 yes conv_pad_12 conv_pad_6 conv_pad_4 conv_pad_2
MobileNetV2       tf      32 224     2257984 yes block_13_pad block_6_pad block_3_pad block_1_pad
MobileNetV3Small  inside  32 224      939120 yes expanded_conv_8_depthwise_pad expanded_conv_3_depthwise_pad expanded_conv_1_depthwise_pad expanded_conv_depthwise_pad
MobileNetV3Large  inside  32 224     2996352 yes expanded_conv_12_depthwise_pad expanded_conv_6_depthwise_pad expanded_conv_3_depthwise_pad expanded_conv_1_depthwise_pad
NASNetMobile      tf      32 224     4269716 yes
NASNetLarge       tf      32 331    84916818 yes
EfficientNetB0    inside  32 224     4049571 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB1    inside  32 240     6575239 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB2    inside  32 260     7768569 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB3    inside  32 300    10783535 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB4    inside  32 380    17673823 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB5    inside  32 456    28513527 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB6    inside  32 528    40960143 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetB7    inside  32 600    64097687 yes block6a_dwconv_pad block4a_dwconv_pad block3a_dwconv_pad block2a_dwconv_pad
EfficientNetV2B0  inside  32 224     5919312 yes block6a_expand_activation block4a_expand_activation block2b_add block1a_project_activation
EfficientNetV2B1  inside  32 240     6931124 yes block6a_expand_activation block4a_expand_activation block2c_add block1b_add
EfficientNetV2B2  inside  32 260     8769374 yes block6a_expand_activation block4a_expand_activation block2c_add block1b_add
EfficientNetV2B3  inside  32 300    12930622 yes block6a_expand_activation block4a_expand_activation block2c_add block1b_add
EfficientNetV2S   inside  32 384    20331360 yes block6a_expand_activation block4a_expand_activation block2d_add block1b_add
EfficientNetV2M   inside  32 480    53150388 yes block6a_expand_activation block4a_expand_activation block2e_add block1c_add
EfficientNetV2L   inside  32 480   117746848 yes block6a_expand_activation block4a_expand_activation block2g_add block1d_add
ConvNeXtTiny      inside  32 224    27820128 yes convnext_tiny_downsampling_block_2 convnext_tiny_downsampling_block_1 convnext_tiny_downsampling_block_0
ConvNeXtSmall     inside  32 224    49454688 yes convnext_small_downsampling_block_2 convnext_small_downsampling_block_1 convnext_small_downsampling_block_0
ConvNeXtBase      inside  32 224    87566464 yes convnext_base_downsampling_block_2 convnext_base_downsampling_block_1 convnext_base_downsampling_block_0
ConvNeXtLarge     inside  32 224   196230336 yes convnext_large_downsampling_block_2 convnext_large_downsampling_block_1 convnext_large_downsampling_block_0
ConvNeXtXLarge    inside  32 224   348147968 yes convnext_xlarge_downsampling_block_2 convnext_xlarge_downsampling_block_1 convnext_xlarge_downsampling_block_0
"""  # noqa: E501


@dataclass(frozen=True)
class Backbone:
    """Describe a network of `keras.applications` before it is built."""

    build: str  # its name in `keras.applications`
    # A mode of `imagenet_utils.preprocess_input`, or `None` where the network preprocesses inside.
    preprocess: str | None
    smallest: int  # pixels a side that it takes at least
    usual: int  # pixels a side that it was trained with
    parameters: int  # how many, without the top
    depthwise: bool  # whether it has depthwise convolutions
    stages: tuple[str, ...]  # names of the layers that the stages start behind, top first; "" is the image

    @property
    def download(self) -> int:
        """Return about how many bytes the ImageNet weights have: four a parameter."""
        return 4 * self.parameters


def _row(line: str) -> Backbone:
    build, preprocess, smallest, usual, parameters, depthwise, *stages = line.split()
    mode, is_depthwise = None if preprocess == "inside" else preprocess, depthwise == "yes"
    return Backbone(build, mode, int(smallest), int(usual), int(parameters), is_depthwise, (*stages, ""))


BACKBONES: dict[str, Backbone] = {row.build.lower(): row for row in map(_row, TABLE.strip().splitlines()[1:])}


def too_many_stages(field: str, count: int, name: str, received: object) -> str:
    """Return the error message for more stages than a network has."""
    return f"Expected {field} to be at most {count}, the stages of {name}. Received: {received}."
