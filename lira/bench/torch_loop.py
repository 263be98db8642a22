"""What a user of PyTorch would do instead of a stack: one model after the other. Needs the `bench` extra."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lira.data.dataset import Dataset
from lira.learning.recipe import Recipe

__all__ = ["TorchLoop", "has_cuda"]


def has_cuda() -> bool:
    """Whether PyTorch finds a CUDA device."""
    return torch.cuda.is_available()


class TorchLoop:
    """One PyTorch model in training: channels last, data on the device in bytes, compiled where there is a GPU."""

    def __init__(self, recipe: Recipe, dataset: Dataset, *, graphs: bool = False) -> None:
        """Build the model of `recipe.model`, its optimizer and its data.

        Args:
            recipe: of the training.
            dataset: its data.
            graphs: launch each step as one CUDA graph, so that the host's time for hundreds of kernels is not spent.
        """
        began = time.perf_counter()
        torch.manual_seed(recipe.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.recipe = recipe
        self.x, self.y = self._tensors(dataset.x, dataset.y)
        self.x_test, self.y_test = self._tensors(dataset.x_test, dataset.y_test)
        # A CUDA model is trained in tensor-core precision on both sides: XLA's default for float32 is TF32 as well.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        self.model = _model(recipe.model, dataset).to(self.device, memory_format=torch.channels_last)
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, recipe.learning_rate, recipe.momentum)
        self.forward = torch.compile(self.model) if self.device.type == "cuda" else self.model
        self.take_step = self._captured() if graphs else self._step
        self.train(2)
        self.compile_seconds = time.perf_counter() - began

    def train(self, steps: int) -> None:
        """Take `steps` training steps and wait for them."""
        for _ in range(steps):
            self.take_step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _step(self) -> None:
        recipe = self.recipe
        batch = torch.randint(len(self.y), (recipe.batch_size,), device=self.device)
        images, labels = self._augmented(self.x[batch]), self.y[batch]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            logits = self.forward(_as_input(images))
        functional.cross_entropy(logits.float(), labels).backward()
        self.optimizer.step()

    def _captured(self) -> Callable[[], None]:
        """The whole step, from drawing the batch to the optimizer, as a CUDA graph; calling it replays the graph.

        Every replay draws anew: PyTorch advances the generator's state, which is on the device, by what a step takes.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # What a capture may not hold: compiling, choosing convolutions by trial, making the momentum.
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)  # so that gradients are in the graph's own memory
        # What other threads ask of the card meanwhile, JAX's among them, is no part of this capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._step()
        return graph.replay

    def accuracy(self) -> float:
        """On the held-out set, normalised by its own batch, as every side of the benchmark is."""
        with torch.no_grad():
            logits = self.model(_as_input(self.x_test))
        return float((logits.argmax(1) == self.y_test).float().mean())

    def memory(self) -> int | None:
        """Peak bytes on the GPU; None on CPU, where PyTorch does not count."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(np.ascontiguousarray(x if x.ndim == 2 else x.transpose(0, 3, 1, 2)))
        return images.to(self.device), torch.from_numpy(y).long().to(self.device)

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        recipe, n = self.recipe, len(images)
        if recipe.flip:
            mirrored = torch.rand(n, 1, 1, 1, device=self.device) < 0.5
            images = torch.where(mirrored, images.flip(3), images)
        if recipe.crop_pad:
            pad, (height, width) = recipe.crop_pad, images.shape[2:]
            padded = functional.pad(images.float(), (pad, pad, pad, pad), mode="reflect").to(images.dtype)
            top, left = torch.randint(0, 2 * pad + 1, (2, n, 1), device=self.device)
            rows = (top + torch.arange(height, device=self.device))[:, None, :, None]
            columns = (left + torch.arange(width, device=self.device))[:, None, None, :]
            each = torch.arange(n, device=self.device)[:, None, None, None]
            channels = torch.arange(images.shape[1], device=self.device)[None, :, None, None]
            images = padded[each, channels, rows, columns]
        return images


def _as_input(images: torch.Tensor) -> torch.Tensor:
    if images.dtype == torch.uint8:
        images = images.float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


def _model(name: str, dataset: Dataset) -> nn.Module:
    """The same architecture as the flax module of that name."""
    classes, shape = dataset.num_classes, dataset.x.shape[1:]
    if name == "mlp":
        widths = [int(np.prod(shape)), 128, 128]
        hidden = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, classes))
    if name in ("cnn", "cnn-small"):
        layers: list[nn.Module] = []
        channels, size = shape[2], shape[0]
        for out, stride in zip((32, 64, 128), (1, 2, 2) if name == "cnn" else (2, 2, 2), strict=True):
            layers += [nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU()]
            channels, size = out, -(-size // stride)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, classes))
    if name == "cnn-fast":
        return _Fast(shape[2], classes)
    if name == "resnet18":
        return _Residual(
            shape[2], classes, stem=64, stages=(64, 128, 256, 512), blocks=2, block=_PostActivation
        )
    if name == "wrn-28-2":
        return _Residual(shape[2], classes, stem=16, stages=(32, 64, 128), blocks=4, block=_PreActivation)
    raise ValueError(f"the benchmark has no PyTorch peer of model {name!r}")


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.01)


class _Fast(nn.Module):
    """Three groups of two convolutions, the first pooled before its norm, the second residual in the wide groups."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        widths = (inputs, 32, 64, 64, 256, 256, 256, 256)
        self.convs = nn.ModuleList(_conv(*pair) for pair in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, momentum=0.1) for width in widths[1:])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = conv(x)
            if layer % 2:
                y = functional.max_pool2d(y, 2)
            y = functional.relu(norm(y))
            x = x + y if layer in (4, 6) else y
        return self.head(x.amax((2, 3))) / 8


class _Residual(nn.Module):
    """A residual network of the CIFAR kind: stem, stages of blocks, mean over pixels, logits."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        stem: int,
        stages: tuple[int, ...],
        blocks: int,
        block: type[nn.Module],
    ) -> None:
        super().__init__()
        self.stem = _conv(inputs, stem)
        self.pre = block is _PreActivation
        parts, channels = [], stem
        for stage, width in enumerate(stages):
            for index in range(blocks):
                parts.append(block(channels, width, 2 if stage and not index else 1, first=index == 0))
                channels = width
        self.blocks = nn.Sequential(*parts)
        self.norm = _norm(channels if self.pre else stem)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = (
            functional.relu(self.norm(self.blocks(x)))
            if self.pre
            else self.blocks(functional.relu(self.norm(x)))
        )
        return self.head(x.mean((2, 3)))


class _PostActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.one, self.two = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs)
        self.norm_one, self.norm_two = _norm(outputs), _norm(outputs)
        self.skip = nn.Sequential()
        if first and (stride > 1 or inputs != outputs):
            self.skip = nn.Sequential(_conv(inputs, outputs, 1, stride), _norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm_two(self.two(functional.relu(self.norm_one(self.one(x)))))
        return functional.relu(y + self.skip(x))


class _PreActivation(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.one, self.two = _conv(inputs, outputs, 3, stride), _conv(outputs, outputs)
        self.norm_one, self.norm_two = _norm(inputs), _norm(outputs)
        self.skip = _conv(inputs, outputs, 1, stride) if first else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm_one(x))
        if self.skip is not None:
            x = self.skip(y)
        return x + self.two(functional.relu(self.norm_two(self.one(y))))
