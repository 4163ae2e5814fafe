"""Files that people keep samples in and that are no npz: what they are, and a remedy. Pure."""

from pathlib import PurePath

__all__ = ["SAVE", "foreign_kind"]

SAVE = "np.savez('samples.npz', x=x, y=y)"
MAGIC = (  # how files begin that people keep samples in, what they are, how to read them
    (b"\x93NUMPY", "one numpy array (.npy)", "x = np.load({file!r})"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", "read its arrays with h5py"),
    (b"MATLAB 5.0", "a MATLAB file", "d = scipy.io.loadmat({file!r})"),
    (b"PAR1", "a Parquet file", "read it with pandas.read_parquet({file!r})"),
    (b"ARROW1", "an Arrow file", "read it with pandas.read_feather({file!r})"),
    (b"SQLite format 3\0", "an SQLite database", "read it with pandas.read_sql"),
    (b"\x1f\x8b", "a file packed by gzip", "unpack it"),
    (b"\x89PNG", "one picture", "put pictures into arrays with Pillow"),
    (b"\xff\xd8\xff", "one picture", "put pictures into arrays with Pillow"),
)
SUFFIXES = {
    ".csv": ("a table of text", "d = np.genfromtxt({file!r}, delimiter=',', skip_header=1)"),
    ".tsv": ("a table of text", "d = np.genfromtxt({file!r}, skip_header=1)"),
    ".txt": ("a text", "d = np.loadtxt({file!r})"),
    ".json": ("a JSON file", "make arrays of it"),
    ".jsonl": ("a JSON file", "make arrays of it"),
    ".arff": ("an ARFF file", "d = scipy.io.arff.loadarff({file!r})"),
}
PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")


def foreign_kind(head: bytes, name: str) -> str:
    """Say what a file ``name`` that begins with ``head`` is, and how to make an npz of it.

    ``head`` is of 16 bytes or more, and of no zip archive. Empty: nobody knows.
    """
    suffix = PurePath(name).suffix.lower()
    if (head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5") or suffix in PICKLES:
        return f"a pickle, which is never loaded: load it where it was made, then {SAVE}"
    for magic, what, how in MAGIC:
        if head.startswith(magic):
            return f"{what}: {how.format(file=name)}, then {SAVE}"
    if suffix in SUFFIXES:
        what, how = SUFFIXES[suffix]
        return f"{what}: {how.format(file=name)}, then {SAVE}"
    return ""
