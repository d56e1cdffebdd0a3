"""Lists the networks that a classifier can be built on.

The texts about int8 contain three kinds of numbers:

- Milliseconds per image at 224x224 on 2 threads of an x86-64 server with VNNI, measured with LiteRT 2.3. Other machines
  have other latencies; only the ratios are comparable.
- Published milliseconds per image on a Raspberry Pi with XNNPACK (2022).
- Published ImageNet accuracies, first of the float model, then of the int8 model.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from edge_agent.errors import ConfigError

from .backbone import Application, Backbone, Lite
from .hub import kerashub_backbone, saved_model_backbone

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_PACKAGE = "a Python package: ImageNet, nothing is downloaded"
_UNPUBLISHED = "none published that edgeloop can read"

_B_INT8 = (
    "uses swish and squeeze-and-excite, with which efficientnet-b0 loses at least 15 points of ImageNet accuracy in "
    "int8; an efficientnet-lite keeps its accuracy"
)
_LITE_INT8 = "designed for int8: efficientnet-lite0 loses 0.7 points of ImageNet accuracy, efficientnet-lite4 1.3"

_ROWS = (
    Backbone(
        "mobilenet-v1",
        224,
        Application(
            "MobileNet",
            "-1..1",
            f"{_KERAS}/mobilenet/mobilenet_1_0_{{side}}_tf_no_top.h5",
            sides=(128, 160, 192, 224),
        ),
        int8="designed for int8; published latency: 24 ms on a Raspberry Pi 4, 46 ms on a Pi 3+",
    ),
    Backbone(
        "mobilenet-v2",
        224,
        Application(
            "MobileNetV2",
            "-1..1",
            f"{_KERAS}/mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{{side}}_no_top.h5",
            sides=(96, 128, 160, 192, 224),
        ),
        int8="int8 is twice as fast as float (2.1 ms vs. 4.4 ms; published: 17 ms on a Raspberry Pi 4, 30 ms on a "
        "Pi 3+); ImageNet accuracy 71.9 -> 70.9 % after quantization-aware training",
    ),
    Backbone(
        "mobilenet-v3-small",
        224,
        Application(
            "MobileNetV3Small",
            "itself",
            f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
            "d3e8ec802a04aa4fc771ee12a9a9b836",
        ),
        int8="int8 is slower than float (5.3 ms vs. 2.3 ms), because hard-swish has no fast int8 implementation; "
        "mobilenet-v2 is twice as fast",
    ),
    Backbone(
        "mobilenet-v3-large",
        224,
        Application(
            "MobileNetV3Large",
            "itself",
            f"{_KERAS}/mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
            "07fb09a5933dd0c8eaafa16978110389",
        ),
        int8="int8 is slower than float (11.8 ms vs. 4.1 ms), because hard-swish has no fast int8 implementation; "
        "ImageNet accuracy 75.2 -> 73.9 %; efficientnet-lite0 is three times as fast",
    ),
    Backbone(
        "efficientnet-b0",
        224,
        Application(
            "EfficientNetB0",
            "itself",
            "https://storage.googleapis.com/keras-applications/efficientnetb0_notop.h5",
            "50bc09e76180e00e4465e1a485ddc09d",
        ),
        int8="int8 is twice as fast as float (3.9 ms vs. 8.3 ms), but loses at least 15 points of 77.1 % ImageNet "
        "accuracy, because of swish and squeeze-and-excite; efficientnet-lite0 keeps its accuracy",
    ),
    Backbone(
        "efficientnet-b1",
        240,
        Application(
            "EfficientNetB1",
            "itself",
            "https://storage.googleapis.com/keras-applications/efficientnetb1_notop.h5",
            "74c4e6b3e1f6a1eea24c589628592432",
        ),
        int8=_B_INT8,
    ),
    Backbone(
        "efficientnet-b2",
        260,
        Application(
            "EfficientNetB2",
            "itself",
            "https://storage.googleapis.com/keras-applications/efficientnetb2_notop.h5",
            "111f8e2ac8aa800a7a99e3239f7bfb39",
        ),
        int8=_B_INT8,
    ),
    Backbone(
        "efficientnet-b3",
        300,
        Application(
            "EfficientNetB3",
            "itself",
            "https://storage.googleapis.com/keras-applications/efficientnetb3_notop.h5",
            "af6d107764bb5b1abb91932881670226",
        ),
        int8=_B_INT8,
    ),
    Backbone(
        "efficientnet-v2-b0",
        224,
        Application(
            "EfficientNetV2B0",
            "itself",
            f"{_KERAS}/efficientnet_v2/efficientnetv2-b0_notop.h5",
            "893217f2bb855e2983157299931e43ff",
        ),
        int8=_B_INT8,
    ),
    Backbone(
        "efficientnet-lite0",
        224,
        Lite(0, 1.0, 1.0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        int8="designed for int8, more than twice as fast as float (3.6 ms vs. 8.8 ms); ImageNet accuracy "
        "75.1 -> 74.4 %",
        weights=_PACKAGE,
        packaged=True,
    ),
    Backbone(
        "efficientnet-lite1",
        240,
        Lite(1, 1.0, 1.1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        int8=_LITE_INT8,
        weights=_PACKAGE,
        packaged=True,
    ),
    Backbone(
        "efficientnet-lite2",
        260,
        Lite(2, 1.1, 1.2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        int8=_LITE_INT8,
        weights=_PACKAGE,
        packaged=True,
    ),
    Backbone("efficientnet-lite3", 280, Lite(3, 1.2, 1.4), int8=_LITE_INT8, weights=_UNPUBLISHED),
    Backbone(
        "efficientnet-lite4",
        300,
        Lite(4, 1.4, 1.8),
        int8="designed for int8; ImageNet accuracy 81.5 -> 80.2 %",
        weights=_UNPUBLISHED,
    ),
    Backbone(
        "resnet50",
        224,
        Application(
            "ResNet50",
            "caffe",
            f"{_KERAS}/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "4d473c1dd8becc155b73f8504c6f6626",
        ),
    ),
    Backbone(
        "inception-v3",
        299,
        Application(
            "InceptionV3",
            "-1..1",
            f"{_KERAS}/inception_v3/inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "bcbd6486424b2319ff4ef7d526e38f63",
        ),
        smallest=75,
    ),
)

BACKBONES: Mapping[str, Backbone] = MappingProxyType({row.name: row for row in _ROWS})


def find_backbone(name: str) -> Backbone:
    """Return the backbone with this name. This does not import Keras or any other framework.

    Args:
        name: a key of `BACKBONES`; ``kerashub:`` followed by the name, handle or folder of a preset; or
            ``savedmodel:`` followed by the folder of a SavedModel, its Kaggle handle, or its address on Kaggle or
            tfhub.dev. The last two forms may end with the pixel range that the network was trained with, such as
            ``#-1..1``.

    Raises:
        ConfigError: no backbone has this name, or the folder in the name does not exist or has the wrong content.
    """
    kind, _, rest = name.partition(":")
    if kind == "kerashub" and rest:
        return kerashub_backbone(name, rest)
    if kind == "savedmodel" and rest:
        return saved_model_backbone(name, rest)
    if name in BACKBONES:
        return BACKBONES[name]
    near = difflib.get_close_matches(name.lower(), BACKBONES, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}" if near else f"choose from {', '.join(BACKBONES)}"
    raise ConfigError(f"no backbone is called {name!r}; {hint}, kerashub:PRESET or savedmodel:FOLDER")
