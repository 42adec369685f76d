"""Other decoders, each a process of its own: `python -I peer.py NAME`, run by any interpreter that has its libraries.

They bring their own FFmpegs, which must not meet in one process. This file imports the standard library, by name the
one library that it drives, and nothing of this package. Requests and answers are lines of JSON on stdin and
stdout. A request: {"entrant", "clips": [{"path", "times", "box"}], "size_px", "show"}. `times` are seconds of video
time; `box` is left, top, width and height of the crop. Each clip is opened, sought, decoded, cropped and scaled into
one array of times x size_px x size_px x 3 (RGB), with every library at its cheapest exact setting that we know of: one
thread, bilinear scaling.
An answer: {"cpu_s", "decoded"}, each a list with one number per clip (none where a library does not say how many frames
it decoded), and "shown", the pictures' means, if asked for; or {"error"}.
"""

import base64
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

Entrant = Callable[[dict[str, Any], int], Any]
"""From a clip of the request and the side in pixels to the array; may put `decoded` into the clip."""
THUMB = 8
"""Side of the grid of means by which two libraries' pictures are compared."""


def cpu_s() -> float:
    """CPU seconds of this process, its threads, and its ended children."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def serve(entrants: Mapping[str, Entrant], versions: Mapping[str, str], clock: Callable[[], float] = cpu_s) -> None:
    """Answer requests until stdin ends; what libraries print goes to stderr. `clock` counts CPU seconds."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    channel.write(json.dumps({"entrants": list(entrants), "versions": dict(versions)}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _measured(entrants[request["entrant"]], request, clock)
        except Exception as error:  # noqa: BLE001  # whatever a library raises is its answer
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        channel.write(json.dumps(answer) + "\n")


def _measured(entrant: Entrant, request: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    cpu, shown = [], []
    for clip in request["clips"]:
        begun = clock()
        pictures = entrant(clip, request["size_px"])
        cpu.append(clock() - begun)
        if request["show"]:
            shown.append(thumbs(pictures))
    decoded = [clip.get("decoded") for clip in request["clips"]]
    return {"cpu_s": cpu, "decoded": decoded, "shown": shown}


def thumbs(pictures: Any) -> str:
    """Means over a grid of THUMB x THUMB of each frame and channel, as text.  Shapes: pictures (T, S, S, 3) uint8."""
    np = import_module("numpy")

    cut = pictures.shape[1] // THUMB
    inner = pictures[:, : THUMB * cut, : THUMB * cut].astype(np.float32)
    means = inner.reshape(len(pictures), THUMB, cut, THUMB, cut, 3).mean((2, 4))
    return base64.b64encode(means.round().astype(np.uint8).tobytes()).decode()


def tidy() -> tuple[dict[str, Entrant], dict[str, str]]:
    """PyAV and OpenCV as one writes it with care: seek, decode on one thread, convert only what is wanted."""
    av = import_module("av")
    cv2 = import_module("cv2")
    np = import_module("numpy")

    cv2.setNumThreads(1)

    def clip(job: dict[str, Any], size: int) -> Any:
        x, y, w, h = job["box"]
        out = np.empty((len(job["times"]), size, size, 3), np.uint8)

        def put(row: int, frame: Any) -> None:
            picture = frame.to_ndarray(format="rgb24", threads=1)
            cv2.resize(picture[y : y + h, x : x + w], (size, size), dst=out[row])

        with av.open(job["path"]) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            unit, start = stream.time_base, stream.start_time or 0
            wanted = [start + int(time / unit + 1e-6) for time in job["times"]]
            container.seek(wanted[0], backward=True, stream=stream)
            row, before = 0, None
            for frame in container.decode(stream):
                due = row
                while due < len(wanted) and before is not None and frame.pts > wanted[due]:
                    due += 1
                if due > row:
                    put(row, before)
                    out[row + 1 : due] = out[row]
                row, before = due, frame
                if row == len(wanted):
                    return out
            put(row, before)
            out[row + 1 :] = out[row]
        return out

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    versions = {"av": av.__version__, "libavcodec": codec, "cv2": cv2.__version__}
    return {"tidy PyAV + OpenCV": clip}, versions


def torchcodec() -> tuple[dict[str, Entrant], dict[str, str]]:
    """TorchCodec in both seek modes, with OpenCV's resize and with its own crop and resize inside the decoder."""
    cv2 = import_module("cv2")
    np = import_module("numpy")
    torch = import_module("torch")
    library, decoders = import_module("torchcodec"), import_module("torchcodec.decoders")

    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    def with_opencv(mode: str) -> Entrant:
        def clip(job: dict[str, Any], size: int) -> Any:
            x, y, w, h = job["box"]
            decoder = decoders.VideoDecoder(job["path"], dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
            frames = decoder.get_frames_played_at(job["times"]).data.numpy()
            out = np.empty((len(frames), size, size, 3), np.uint8)
            for row, frame in enumerate(frames):
                cv2.resize(frame[y : y + h, x : x + w], (size, size), dst=out[row])
            return out

        return clip

    entrants = {f"torchcodec {mode} + OpenCV": with_opencv(mode) for mode in ("approximate", "exact")}
    try:
        own = import_module("torchcodec.transforms")
    except ImportError:  # before 0.9
        return entrants, _torchcodec_versions(library, torch)

    class Crop(own.DecoderTransform):
        """A given box: the library's own crops are centred, or drawn by itself."""

        def __init__(self, box: Any) -> None:
            self.box = box

        def _make_transform_spec(self, input_dims: Any) -> str:
            x, y, w, h = self.box
            return f"crop, {h}, {w}, {x}, {y}"

        def _get_output_dims(self) -> tuple[int, int]:
            return self.box[3], self.box[2]

    def inside(mode: str) -> Entrant:
        def clip(job: dict[str, Any], size: int) -> Any:
            decoder = decoders.VideoDecoder(
                job["path"],
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                seek_mode=mode,
                transforms=[Crop(job["box"]), own.Resize((size, size))],
            )
            return decoder.get_frames_played_at(job["times"]).data.numpy()

        return clip

    entrants |= {f"torchcodec {mode}, inside": inside(mode) for mode in ("approximate", "exact")}
    return entrants, _torchcodec_versions(library, torch)


def _torchcodec_versions(library: Any, torch: Any) -> dict[str, str]:
    with open("/proc/self/maps") as maps:  # OpenCV's own copy has a hash in its name
        loaded = {line.split("/")[-1].strip() for line in maps if "/libavcodec.so" in line}
    return {"torchcodec": library.__version__, "torch": torch.__version__, "libavcodec": ", ".join(sorted(loaded))}


def decord() -> tuple[dict[str, Entrant], dict[str, str]]:
    """Decord with one thread and OpenCV's resize. It knows frame numbers only: time x average rate."""
    cv2 = import_module("cv2")
    library = import_module("decord")
    np = import_module("numpy")

    cv2.setNumThreads(1)

    def clip(job: dict[str, Any], size: int) -> Any:
        x, y, w, h = job["box"]
        reader = library.VideoReader(job["path"], num_threads=1)
        rate, last = reader.get_avg_fps(), len(reader) - 1
        frames = reader.get_batch([min(int(time * rate + 1e-6), last) for time in job["times"]]).asnumpy()
        out = np.empty((len(frames), size, size, 3), np.uint8)
        for row, frame in enumerate(frames):
            cv2.resize(frame[y : y + h, x : x + w], (size, size), dst=out[row])
        return out

    return {"decord + OpenCV": clip}, {"decord": library.__version__}


PEERS: dict[str, Callable[[], tuple[dict[str, Entrant], dict[str, str]]]] = {
    "tidy": tidy,
    "torchcodec": torchcodec,
    "decord": decord,
}


def main(name: str) -> None:
    """Import the library and serve, or say in one line why not."""
    try:
        entrants, versions = PEERS[name]()
    except (ImportError, OSError, RuntimeError) as error:  # a library that does not load raises any of these
        text = " ".join(str(error).split())
        sys.stdout.write(json.dumps({"missing": text[:200]}) + "\n")
        return
    serve(entrants, versions)


if __name__ == "__main__":
    main(sys.argv[1])
