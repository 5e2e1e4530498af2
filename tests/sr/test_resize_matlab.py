"""imresize against MATLAB's published files, and recorded hashes where those are absent."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elasticnet.sr.resize import imresize

DATA = os.environ.get("ELASTICNET_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="ELASTICNET_DATA is not set: the benchmark images are needed"
)

# SHA-256 of the pixels of scikit-image's photographs (PNG, so the same for every decoder), and of
# imresize on them, recorded by the code that proved the Set5 and Set14 files exact.
PHOTOGRAPHS = {
    "astronaut": "a8c429c18afa7b0fd5673e598d73a21225d94c864a71bbb3885126fdecb41071",
    "chelsea": "416b729128bfb2c3d1eb69bf9b1734a796293abc17939267b2dc94f8a5784031",
    "coffee": "0ce2b51640b9c95f19617f03eabf40c3f0368589cc1ee1190b70966165ac184f",
    "camera": "5cb24482a53416f99052258be2b1ee38cd31c559a70c8a8b321cba231b332e21",
}
RESIZED = {
    "astronaut": {
        (1 / 2, "symmetric"): "86e24d8e2e582de831fd6d67f238586d6ee8b6fcea4b52df99cac23131f3a606",
        (1 / 3, "symmetric"): "1e2abf780a5ef8869bbcc71ffd844ab84b827990cf22baf355e7396e3f394f99",
        (1 / 4, "symmetric"): "53ca505a86fd24fa38e922ad4427a2106d12646194c306f0b379f234e78e1763",
        (1 / 2, "replicate"): "b42293a43c150dda507f68516bb0a4aac2f0727abe2748ebb02ea1f83679bd96",
        (1 / 3, "replicate"): "89e999492d2f637b84fd9aa81d7bbdd4a4f65108cd73dd38101980d11c052d8e",
        (1 / 4, "replicate"): "779079bcc93ec25299324a20e627ad9bd6d317fe6e0ccc2c0037703d25ae14f7",
        (3, "symmetric"): "0bc28a9cb2f0accaee139e0b07c2ca5f1b14c1451a79de6c3294e5c265f58dfb",
        (1.7, "symmetric"): "da85de43959ec6bd4664cf3ecd9817e349b13a46d6218da2140009d43f5ee05c",
    },
    "chelsea": {
        (1 / 2, "symmetric"): "351e07c2bf506f7b552a78caf8e137da2dc0607c258d2c3f861dc005c379a656",
        (1 / 3, "symmetric"): "198797be15fe852328fbd5b30f2f6db195cfddfb212b87d81ebebf666e392bcb",
        (1 / 4, "symmetric"): "2763b9379ac9f726ee00ad212737db81c87a04f01df75a854f9a013df80b082d",
        (1 / 2, "replicate"): "63adba6301a3bf31dd1aba5260f579f29cc040f8d159facb561a6ec3b72b01e3",
        (1 / 3, "replicate"): "2dffe991cfceaa580bba65552b6a20d518575f5e8afd345f04cc6efa8dcceaf3",
        (1 / 4, "replicate"): "2b0830814fe14fa964c6a060c1a1bfa8814259f4c8bc185afacff3910ece3927",
        (3, "symmetric"): "ee8f2e599929c3bca61dec626e3369b54e35024f292b0c127fc3ac2d7d771832",
        (1.7, "symmetric"): "0dfa665e1facb93483e56874506d1102d9e583d294d6a78adb974dedc2dc98c7",
    },
    "coffee": {
        (1 / 2, "symmetric"): "2356f976210326d9da0084e51ae5eef686960868631bf2ff18b0d4e8e7d4a8d0",
        (1 / 3, "symmetric"): "ec9c2440bc955e42a2e124e2383abe5924cbd3eacba4978076deab713d3346c2",
        (1 / 4, "symmetric"): "5c42e9762536e70034d6aac632d789664d63b4d080db53ac6a3a8913dee849ae",
        (1 / 2, "replicate"): "cb05065a3ca43c76d3f372bfe559708dd741efde7248a2fd015ce687ea544fb3",
        (1 / 3, "replicate"): "ec1a7a830803b5c82132ac60522d502afdf9aa07e4564e220509cacd5e577ed6",
        (1 / 4, "replicate"): "662956125f621d51c00a6200a7c95b9776a3a8a8429764cdcde0143e4b17e3f3",
        (3, "symmetric"): "c02bd4472627213715d09d3f467a9126b4ba7838dcef1f153be02b3bc0981433",
        (1.7, "symmetric"): "cf8f851910f33391698db9461a6eec35be9f81e87e32716023fb25283fdf137a",
    },
    "camera": {
        (1 / 2, "symmetric"): "19535cfc899077732238bcbaa0a85d89a7a0199ef7fe74b8ea840ad7782ab249",
        (1 / 3, "symmetric"): "54af5a92b4f889bceb1006d68f5a93b2542ad38919ddb0c718b1f8b5282ad2c8",
        (1 / 4, "symmetric"): "b91f37a475a30eaad62c10f54e7e17a43cf91d79653846949b5877c3f3d11eb3",
        (1 / 2, "replicate"): "391ab1edcb27baed3f937bb504c109909266a195c393df188570a8df3f4b1d9f",
        (1 / 3, "replicate"): "6114dfd34fb30dce051eaf3111879ddd07a8cf45e988a9bb6b3cb56cdd6269b7",
        (1 / 4, "replicate"): "49d5586e676d882b751d6796d38734ab4348b1b9a33e3e09bf837d5677eb5fef",
        (3, "symmetric"): "959fa626cb5f3991299a2bdd90b176449978f8a5ff75466c97cf360c6372b6f0",
        (1.7, "symmetric"): "109ad573faa66f8174218efa98c471b728e8497617a3c6b45007588bd0c4fa42",
    },
}


def modcrop(image: np.ndarray, scale: int) -> np.ndarray:
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_low_resolution_files_come_out_exactly(scale: int) -> None:
    folder = Path(DATA or "") / "benchmark" / "Set5"
    files = sorted((folder / "HR").glob("*.png"))
    assert len(files) == 5
    for file in files:
        high = modcrop(np.asarray(Image.open(file).convert("RGB")), scale)
        low = np.asarray(
            Image.open(folder / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png")
        )
        np.testing.assert_array_equal(imresize(high, 1 / scale), low, err_msg=file.name)


@needs_data
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set14_low_resolution_files_come_out_exactly(scale: int) -> None:
    files = sorted(
        (Path(DATA or "") / "benchmark" / "Set14" / f"image_SRF_{scale}").glob("*_HR.png")
    )
    assert len(files) == 14
    for file in files:
        high = modcrop(np.asarray(Image.open(file)), scale)
        low = np.asarray(Image.open(file.with_name(file.name.replace("_HR", "_LR"))))
        np.testing.assert_array_equal(
            imresize(high, 1 / scale, border="replicate"), low, err_msg=file.name
        )


@pytest.mark.parametrize("name", RESIZED)
def test_photographs_keep_their_recorded_hashes(name: str) -> None:
    data = pytest.importorskip("skimage.data")
    photograph = getattr(data, name)()
    assert sha256(photograph) == PHOTOGRAPHS[name], "another source picture"
    for (scale, border), digest in RESIZED[name].items():
        resized = imresize(photograph, scale, border=border)
        assert resized.flags.c_contiguous
        assert sha256(resized) == digest, f"{name}, factor {scale:.2f}, {border}"


def sha256(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()
