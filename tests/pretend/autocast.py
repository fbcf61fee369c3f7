"""Mixed precision on the pretend device: torch's lists of operators for CUDA, which torch compiles for real backends.

https://docs.pytorch.org/docs/2.11/amp.html#cuda-ops-that-can-autocast-to-float16
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

KEY = "AutocastPrivateUse1"
LOWER = (
    *("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("linear", "matmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "prelu", "einsum"),
    "scaled_dot_product_attention",
)
FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh"),
    *("tan", "pow", "softplus", "layer_norm", "native_layer_norm", "group_norm", "norm", "cosine_similarity"),
    *("cosine_embedding_loss", "nll_loss", "nll_loss2d", "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss"),
    *("huber_loss", "mse_loss", "margin_ranking_loss", "multilabel_margin_loss", "soft_margin_loss"),
    *("multi_margin_loss", "triplet_margin_loss", "binary_cross_entropy_with_logits", "dist", "pdist", "cdist"),
    *("renorm", "logsumexp", "softmax", "log_softmax", "cumprod", "cumsum", "prod", "sum"),
    *("upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d"),
)
WIDEST = ("addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "grid_sampler", "index_put", "scatter_add")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if floating else value


def _run(operator: Any, kind: str, *args: Any, **kwargs: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C._parse_dispatch_key(KEY))):
        if kind == "lower":
            dtype = torch.get_autocast_dtype(torch._C._get_privateuse1_backend_name())
        elif kind == "float32":
            dtype = torch.float32
        else:
            found = [x.dtype for x in torch.utils._pytree.tree_leaves(args) if isinstance(x, Tensor)]
            dtype = functools.reduce(torch.promote_types, [x for x in found if x.is_floating_point], torch.bfloat16)
        convert = functools.partial(_cast, dtype=dtype)
        return operator(*tree_map(convert, args), **tree_map(convert, kwargs))


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise RuntimeError("torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.")


def register() -> list[torch.library.Library]:
    """Makes autocast of the pretend backend what it is on CUDA; lasts as long as the result."""
    fallback, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    fallback.fallback(torch.library.fallthrough_kernel, KEY)
    for kind, names in (("lower", LOWER), ("float32", FLOAT32), ("widest", WIDEST)):
        for packet in (getattr(torch.ops.aten, name) for name in names):
            for overload in packet.overloads():
                if "out" not in overload and "Dimname" not in overload:
                    operator = getattr(packet, overload)
                    own.impl(operator, functools.partial(_run, operator, kind), KEY)
    own.impl("binary_cross_entropy", _refuse, KEY)
    return [fallback, own]
