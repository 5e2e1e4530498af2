"""Our networks in spandrel, by which chaiNNer and ComfyUI load models (extra `spandrel`).

`install()` adds two architectures to spandrel's registry. Its loader then takes files that
`elasticnet convert FILE --to spandrel` has written, of any network of ours that enlarges images,
and the files of EDSR and of BasicSR's EDSR and RCAN, which spandrel itself does not know. RCAN with
the authors' keys, as `elasticnet convert FILE --to authors` writes it, is an architecture of
spandrel's own and needs nothing of this.
"""

from __future__ import annotations

from spandrel import (  # pyright: ignore[reportMissingTypeStubs] - it has annotations and no py.typed
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    StateDict,
)
from torch import nn

from elasticnet.sr.inference.scale import scale_of
from elasticnet.sr.models.basicsr_keys import has_basicsr_keys
from elasticnet.sr.models.carried import is_carried, load_carried
from elasticnet.sr.models.convert import has_edsr_keys, load_official
from elasticnet.wrapper import ElasticWrapper


class CarriedArch(Architecture[nn.Module]):
    """A network of ours, in a file that `elasticnet convert FILE --to spandrel` has written.

    Args:
        depth: How many blocks are loaded, of every file; default: all that a file holds.
    """

    def __init__(self, depth: int | None = None) -> None:
        super().__init__(id="elasticnet", name="elasticnet", detect=is_carried)
        self.depth = depth

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """Return the network as spandrel runs it.

        Args:
            state_dict: What the file holds: one tensor of bytes.

        Raises:
            ValueError: The bytes are damaged, or there is no tap at the depth.
        """
        return _described(load_carried(state_dict, self.depth), self)


class OthersArch(Architecture[nn.Module]):
    """EDSR with the authors' keys, and EDSR and RCAN with BasicSR's."""

    def __init__(self) -> None:
        super().__init__(id="elasticnet-others", name="EDSR, RCAN (BasicSR)", detect=_is_of_others)

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[nn.Module]:
        """Return the network as spandrel runs it.

        Args:
            state_dict: With the keys of EDSR's authors or of BasicSR.

        Raises:
            ValueError: A tensor is missing, unexpected or of another shape.
        """
        return _described(load_official(state_dict), self)


def install(registry: ArchRegistry = MAIN_REGISTRY, *, depth: int | None = None) -> None:
    """Add our architectures to a registry of spandrel; a second call changes nothing.

    Args:
        registry: Where they are added; default: the one that spandrel's loader uses.
        depth: How many blocks of our files are loaded; default: all that a file holds.

    Example:
        >>> from spandrel import ModelLoader
        >>> install()
        >>> model = ModelLoader().load_from_file("asrn_x4_spandrel.safetensors")
        >>> model.scale
        4
    """
    architectures: list[Architecture[nn.Module]] = [CarriedArch(depth), OthersArch()]
    for architecture in architectures:
        if architecture.id not in registry:
            registry.add(ArchSupport.from_architecture(architecture))


def _is_of_others(state_dict: StateDict) -> bool:
    return has_basicsr_keys(state_dict) or has_edsr_keys(state_dict)


def _described(
    net: ElasticWrapper, architecture: Architecture[nn.Module]
) -> ImageModelDescriptor[nn.Module]:
    """A network with what spandrel wants to know of it: RGB in 0..1, in and out."""
    scale = scale_of(net)
    return ImageModelDescriptor(
        net,
        net.state_dict(),
        architecture=architecture,
        purpose="Restoration" if scale == 1 else "SR",
        tags=[f"depth {len(net.blocks)}"],
        supports_half=False,  # EDSR and RCAN compute on 0..255; float16 was not tried
        supports_bfloat16=True,
        scale=scale,
        input_channels=3,
        output_channels=3,
    )
