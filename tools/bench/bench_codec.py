"""``edgefold bench codec``: bytes over error on real deltas, against what others send.

The deltas come from federated fine-tuning on non-IID data (`codec_deltas.py`); every method
sees the same ones, and bytes are those of whole payloads. "In context" means: of the device's
own last update, as decoded from a payload, which is what both sides really hold. The "har" sets
are of synthetic windows (`tools.codec_lab.codec_inertial`), all others of real data.
"""

import argparse
import contextlib
import json
import math
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.codec.budget import Budget
from models.codec.payload import compress, decompress
from models.codec.transform.frame import draft_frame, prepare
from models.errors import UsageError
from models.host.durable import atomic_write
from models.task.params import Vector
from models.task.spec import TensorSpec
from tools.codec_lab.codec_bounds import bound_report
from tools.codec_lab.codec_peers import PEERS, WITHIN, Point
from tools.given_file import file_to_write
from tools.progress import bar

if TYPE_CHECKING:
    from tools.cli import Subparsers

__all__ = ["register"]

SETS = ("fm_e1_r01", "fm_e1_r20", "fm_e5_r01", "fm_e5_r20")
SETS_OF_DIGITS = ("digits_e1_r01", "digits_e1_r20", "digits_e5_r01", "digits_e5_r20")
SETS_OF_HAR = ("har_e1_r01", "har_e1_r20", "har_e5_r01", "har_e5_r20")  # synthetic
ALL_SETS = (*SETS, *SETS_OF_DIGITS, *SETS_OF_HAR)
TARGETS = (0.1, 0.2, 0.3, 0.4, 0.6)  # of the NMSE
STEPS = np.geomspace(1.3, 24, 10)  # times the root mean square of the delta
DENSE, OURS, IN_CONTEXT = "float32", "edgefold", "edgefold in context"
AFTER_RELEASE = "edgefold in context of the last release"  # in learning: what the product does
NNCODEC = {  # its package is on no registry: figures measured elsewhere, on other deltas
    "fm_e1_r20": {0.2: 34_900, 0.4: 15_000, 0.6: 5_800},
}


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the parser of ``bench codec``."""
    parser = subparsers.add_parser("codec", help="bytes over error of the payload codec")
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deltas",
        default="deltas",
        metavar="DIR|make",
        help="folder of recorded rounds; what is missing is made there; make: all anew, in a "
        "folder that is removed again (default: %(default)s)",
    )
    parser.add_argument("--sets", nargs="*", default=list(ALL_SETS), metavar="SET")
    parser.add_argument("--devices", type=int, default=5, help="of each round (default: 5)")
    parser.add_argument(
        "--against", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER"
    )
    parser.add_argument(
        "--learn",
        nargs="*",
        default=[],
        metavar="SCENARIO:BYTES:SEEDS",
        help="also learn through the codec, such as digits_e1:200:3 or fm_small:2000:1",
    )
    parser.add_argument(
        "--learn-against",
        nargs="*",
        default=list(WITHIN),
        choices=list(WITHIN),
        metavar="PEER",
        help=f"in the same loops (default: {', '.join(WITHIN)})",
    )
    parser.add_argument("--rounds", type=int, default=30, help="of --learn (default: 30)")
    parser.add_argument("--report", type=file_to_write, metavar="FILE.json")
    parser.add_argument("--picture", type=file_to_write, metavar="FILE.png")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the report."""
    if unknown := [name for name in arguments.sets if name not in ALL_SETS]:
        raise UsageError(f"no set {unknown[0]}: take one of {', '.join(ALL_SETS)}")
    report: dict[str, Any] = {"sets": {}, "learning": []}
    with contextlib.ExitStack() as stack:
        folder = Path(arguments.deltas)
        if arguments.deltas == "make":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgefold-")))
        for done, name in enumerate(arguments.sets):
            with bar(what="bench codec") as tell:
                tell(done / len(arguments.sets), name)
                tensors, deltas, own = _round(folder, name)
                count = min(arguments.devices, len(deltas))
                figures = measure(tensors, deltas[:count], own[:count], arguments.against)
            if name in NNCODEC:
                figures["NNCodec (published study, other deltas)"] = NNCODEC[name]
            report["sets"][name] = figures
            _print(name, figures)
    for wanted in arguments.learn:
        with bar(what="bench codec") as tell:
            tell(0.0, f"learning {wanted}")
            found = _learn(wanted, arguments.rounds, arguments.learn_against)
        report["learning"].append(found)
        print(json.dumps(found), flush=True)
    if arguments.report:
        atomic_write(arguments.report, json.dumps(report, indent=1).encode() + b"\n")
    if arguments.picture:
        from tools.codec_lab.codec_picture import draw

        draw(report, arguments.picture)
    return 0


def measure(
    tensors: Sequence[TensorSpec],
    deltas: Sequence[Vector],
    own: Sequence[Vector],
    against: Iterable[str],
) -> dict[str, Any]:
    """Return bytes at each target error, times and memory, as means over ``deltas``."""
    figures: dict[str, Any] = {"parameters": int(deltas[0].size), "methods": {}}
    contexts = [
        decompress(compress(vector, tensors, Budget()), tensors) if vector.any() else None
        for vector in own
    ]
    curves: dict[str, list[list[Point]]] = {OURS: [_curve(d, tensors, None) for d in deltas]}
    if any(context is not None for context in contexts):
        pairs = zip(deltas, contexts, strict=True)
        curves[IN_CONTEXT] = [_curve(delta, tensors, context) for delta, context in pairs]
    for name in against:
        curves[name] = [list(PEERS[name](delta)) for delta in deltas]
    for name, found in curves.items():
        figures["methods"][name] = {
            "bytes_at_nmse": {str(target): _mean_bytes(found, target) for target in TARGETS},
            "curve": [[point.bytes, round(point.nmse, 5)] for point in found[0]],
        }
    figures["cost"] = [_cost(deltas[0], tensors, target) for target in (0.2, 0.4, 0.6)]
    figures["bound"] = bound_report(deltas[0], tensors)
    return figures


def _curve(delta: Vector, tensors: Sequence[TensorSpec], context: Vector | None) -> list[Point]:
    prepared = prepare(delta, tensors, context=context)
    energy = float(np.square(delta.astype(np.float64)).sum())
    root = math.sqrt(energy / delta.size)
    points = []
    for step in STEPS:
        frame = draft_frame(prepared, root * step).finish()
        found = decompress(frame, tensors, context=context)
        missed = float(np.square((delta - found).astype(np.float64)).sum())
        points.append(Point(len(frame), missed / energy))
    return points


def _mean_bytes(curves: Sequence[Sequence[Point]], target: float) -> int | None:
    """Return the bytes at ``target``, between the two nearest points of each curve."""
    sizes = []
    for curve in curves:
        points = sorted(curve, key=lambda point: point.nmse)
        errors = [point.nmse for point in points]
        if not errors[0] <= target <= errors[-1]:
            return None
        logs = [math.log(point.bytes) for point in points]
        sizes.append(math.exp(float(np.interp(target, errors, logs))))
    return round(float(np.mean(sizes)))


def _cost(delta: Vector, tensors: Sequence[TensorSpec], target: float) -> dict[str, float]:
    """Return times of one whole encode (search included) and decode, and the memory it takes."""
    encode, decode = [], []
    for _ in range(3):
        began = time.process_time()
        payload = compress(delta, tensors, Budget(nmse=target))
        encode.append(time.process_time() - began)
        began = time.process_time()
        decompress(payload, tensors)
        decode.append(time.process_time() - began)
    tracemalloc.start()
    compress(delta, tensors, Budget(nmse=target))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "nmse": target,
        "bytes": len(payload),
        "encode_ms": round(1000 * min(encode)),
        "decode_ms": round(1000 * min(decode)),
        "peak_over_delta": round(peak / delta.nbytes, 2),
    }


def _round(folder: Path, name: str) -> tuple[tuple[TensorSpec, ...], list[Vector], list[Vector]]:
    from tools.codec_lab.codec_deltas import make, read_round

    path = folder / f"{name}.npz"
    if not path.exists():
        print(f"making {path}: a few minutes of federated training", flush=True)
        make(folder, [name.rpartition("_r")[0]])
    tensors, found = read_round(path)
    return tensors, found.deltas, found.own


def _learn(wanted: str, rounds: int, against: Sequence[str]) -> dict[str, Any]:
    from tools.codec_lab.codec_deltas import SCENARIOS
    from tools.codec_lab.codec_learning import dense, learn, peer_within, within

    try:
        scenario, most, seeds = wanted.split(":")
        limit, count = int(most), int(seeds)
    except ValueError:
        raise UsageError(f"--learn {wanted}: write SCENARIO:BYTES:SEEDS") from None
    if scenario not in SCENARIOS:
        raise UsageError(f"--learn {wanted}: take one of {', '.join(SCENARIOS)}")
    channels = {
        DENSE: dense,
        OURS: within(limit),
        IN_CONTEXT: within(limit, context_of="own"),
        AFTER_RELEASE: within(limit, context_of="release"),
        **{name: peer_within(name, limit) for name in against},
    }
    found: dict[str, Any] = {"scenario": scenario, "bytes": limit, "rounds": rounds, "methods": {}}
    for name, channel in channels.items():
        courses = [learn(scenario, channel, seed=seed, rounds=rounds) for seed in range(count)]
        found["methods"][name] = {
            "accuracy": [round(course.final, 4) for course in courses],
            "accuracy_averaged": [round(course.final_averaged, 4) for course in courses],
            "bytes_per_update": round(float(np.mean([c.bytes_per_update for c in courses]))),
        }
    whole = np.array(found["methods"][DENSE]["accuracy"])
    for one in found["methods"].values():
        one["points_lost"] = round(100 * float((whole - one["accuracy"]).mean()), 2)
        lost = np.array(found["methods"][DENSE]["accuracy_averaged"]) - one["accuracy_averaged"]
        one["points_lost_averaged"] = round(100 * float(lost.mean()), 2)  # of what devices run
    return found


def _print(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}: {figures['parameters']} parameters; bytes at NMSE")
    print(f"{'':28}" + "".join(f"{target:>10}" for target in TARGETS))
    for method, found in figures["methods"].items():
        sizes = [found["bytes_at_nmse"][str(target)] for target in TARGETS]
        print(f"{method:28}" + "".join(f"{size or '-':>10}" for size in sizes))
    for cost in figures["cost"]:
        print(
            f"  NMSE {cost['nmse']}: {cost['bytes']} bytes, encode {cost['encode_ms']} ms, "
            f"decode {cost['decode_ms']} ms, peak memory {cost['peak_over_delta']} deltas"
        )
    bound = figures["bound"]
    print(
        f"  payload {bound['bytes']} bytes, {100 * bound['above_ideal']:+.1f} % of its ideal code "
        f"length; by tensors (ideal scalar quantizer and coder at equal error in brackets):"
    )
    for one in bound["groups"]:
        form = one["form"] + (f" {one['rank']}" if one["rank"] else "")
        print(
            f"    {','.join(one['tensors'])[:38]:38} {form:>14} {one['ideal_bytes']:>9} "
            f"({one['scalar_bytes']}) bytes, NMSE {one['nmse']}"
        )
