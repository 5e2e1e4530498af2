"""Makes what the demo page needs beside itself: exported files, and ONNX Runtime Web.

    python docs/demo/make.py             writes docs/demo/models/ and docs/demo/vendor/
    python docs/demo/make.py --serve     and serves the page at http://127.0.0.1:8000/

`make demo-page` runs it. It needs the extra `export`, and Node.js for its `npm`. Neither folder is
in the repository: the runtime has 40 MB.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import subprocess
import tempfile
from pathlib import Path

from elasticnet.export import export
from elasticnet.sr import asrn

HERE = Path(__file__).parent
MODELS = HERE / "models"
VENDOR = HERE / "vendor"
PACKAGE = "onnxruntime-web"
# with and without WebGPU; each loads the WebAssembly of its own build
RUNTIME_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)


def make_models() -> None:
    """Export every depth of the packaged network that enlarges four times."""
    MODELS.mkdir(exist_ok=True)
    net = asrn(4, pretrained=True)
    for depth in net.taps:
        written = export(net, MODELS / f"asrn_x4_d{depth}.onnx", depth=depth, overwrite=True)
        print(f"{written.path.name}: {written.size / 1e6:.3f} MB")


def make_vendor() -> None:
    """Fetch ONNX Runtime Web and keep the files that the page loads."""
    VENDOR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run([*command, "--prefix", folder, PACKAGE], check=True)
        copy_runtime(Path(folder) / "node_modules" / PACKAGE)


def copy_runtime(package: Path) -> None:
    """Copy the files that the page loads.

    Args:
        package: The folder of an installed onnxruntime-web.
    """
    VENDOR.mkdir(exist_ok=True)
    for name in RUNTIME_FILES:
        shutil.copyfile(package / "dist" / name, VENDOR / name)


def server(port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of this folder on the loopback address.

    Args:
        port: 0 takes any free one.
    """
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(HERE))
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    """Make both folders, and serve the page if the command line says so."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help="serve the page afterwards")
    options = parser.parse_args()
    make_models()
    make_vendor()
    if options.serve:
        serving = server(8000)
        print(f"http://127.0.0.1:{serving.server_port}/")
        serving.serve_forever()


if __name__ == "__main__":
    main()
