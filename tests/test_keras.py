"""The Keras front end under TensorFlow, JAX and torch: see `keras_contract` for what is checked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRAMEWORKS = ("tensorflow", "jax", "torch")


def run(framework, *arguments, **environment):
    """A Python process of its own, in which Keras runs on a framework."""
    for needed in ("keras", framework):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    settings = {
        "KERAS_BACKEND": framework,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    path = os.pathsep.join([str(ROOT), *sys.path])
    made = {**os.environ, **settings, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=made, cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_contract(framework):
    assert run(framework, "-m", "tests.keras_contract", "sample").splitlines()[-1] == "held"


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_contract_of_every_variant_compiled(framework):
    assert run(framework, "-m", "tests.keras_contract", "everything").splitlines()[-1] == "held"


SEED = """
import sys
from stn import spatial_transformer_network as transformer

assert not {"keras", "tensorflow", "jax"} & set(sys.modules)
import numpy as np
if %(framework)r == "tensorflow":
    import tensorflow as tf
    make = tf.constant
else:
    import jax.numpy as jnp
    make = jnp.asarray
image = np.arange(2 * 6 * 6 * 3, dtype="float32").reshape(2, 6, 6, 3)
theta = np.array([[1.0, 0, 0, 0, 1, 0]] * 2, "float32")
same = transformer(input_fmap=make(image), theta=make(theta))
assert type(same) is type(make(image))
assert abs(np.asarray(same) - image).max() < 1e-4
assert transformer(make(image), make(theta), out_dims=(3, 4)).shape == (2, 3, 4, 3)
loaded = {name.partition(".")[0] for name in sys.modules}
needless = {"lightning", "stn_recipes", "triton" if "tensorflow" in loaded else "tensorflow"}
print(sorted(loaded & needless))  # TensorFlow loads JAX, and Keras matplotlib, where they are
"""


@pytest.mark.parametrize("framework", ["tensorflow", "jax"])
def test_the_old_call_takes_arrays_of_the_framework_and_loads_no_more_than_it_needs(framework, tmp_path):
    made = SEED % {"framework": framework}
    out = run(framework, "-c", "import os; del os.environ['KERAS_BACKEND']\n" + made, KERAS_HOME=str(tmp_path))
    assert out.splitlines()[-1] == "[]"


def test_the_old_call_names_the_framework_that_keras_does_not_run_on():
    call = """
import stn, stn.keras, jax.numpy as jnp
try:
    stn.spatial_transformer_network(jnp.ones((1, 2, 2, 1)), jnp.ones((1, 6)))
except ValueError as error:
    print(error)
"""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    assert "expected an array of torch, on which Keras runs, got one of jax" in run("torch", "-c", call)


TURN = """
import numpy as np, keras, stn.keras

image = np.random.default_rng(0).random((2, 40, 40, 3), dtype="float32")
localizer = keras.Sequential([keras.layers.Flatten(), stn.keras.identity_head("affine")])  # the identity
same = stn.keras.SpatialTransformer(localizer, "affine", data_format="channels_last")(image)
assert abs(keras.ops.convert_to_numpy(same) - image).max() < 1e-4
c = np.cos(np.pi / 4)
turn = np.array([[c, -c, 0, c, c, 0]] * 2, "float32")
turned = image
for _ in range(8):  # eight times 45 degrees: the middle is where it was, smoothed
    turned = stn.keras.spatial_transformer_network(turned, turn)
ramp = np.broadcast_to(np.linspace(0, 1, 40, dtype="float32")[:, None, None], (2, 40, 40, 3))
once = keras.ops.convert_to_numpy(stn.keras.spatial_transformer_network(ramp, turn))
along = np.diff(once[:, 18:22, 18:22], axis=2) * 39
assert abs(along - c).max() < 1e-3  # a vertical ramp runs along both axes then
assert keras.ops.convert_to_numpy(turned).shape == image.shape
"""


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_old_example_identity_and_45_degrees(framework):
    run(framework, "-c", TURN)


def test_the_old_example_as_a_notebook():
    """Its cells, one after the other: the identity, 45 degrees there and back, and a picture with the three side by side."""
    pytest.importorskip("sklearn")
    cells = json.loads((ROOT / "examples" / "tensorflow.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    shown = "\nassert [ax.get_title() for ax in axes] == ['input', '45 degrees', 'and back']\nassert np.ptp(turned[0]) > 0.5\n"
    out = run("tensorflow", "-c", "\n".join(code) + shown, MPLBACKEND="Agg")
    assert "changed by the identity: 0.0" in out
