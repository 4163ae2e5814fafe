"""Whole numbers and slices in a byte stream, read within bounds. Pure, and without numpy."""

from models.errors import PayloadError

__all__ = ["Reader", "read_varint", "varint"]

MAX_NUMBER = (1 << 56) - 1  # eight groups of seven bits


def varint(number: int) -> bytes:
    """Return ``number`` >= 0 as LEB128: seven bits per byte, lowest first, high bit: more follow.

    Raises:
        ValueError: negative or beyond ``MAX_NUMBER``.
    """
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"{number} is not between 0 and {MAX_NUMBER}")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def read_varint(
    data: bytes, at: int, end: int, *, what: str = "payload", longest: int = 8
) -> tuple[int, int]:
    """Read the number that begins at ``at``, of at most ``longest`` bytes before ``end``.

    Returns:
        The number, and where the next thing begins.

    Raises:
        PayloadError: cut off, or too long. ``what`` says of what.
    """
    number = 0
    for place, byte in enumerate(data[at : min(end, at + longest)]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    if at + longest > end:
        raise PayloadError(f"{what}: cut off after {end} bytes")
    raise PayloadError(f"{what}: a number that is too large")


class Reader:
    """Reads a payload from front to back; whatever is not there is a PayloadError."""

    def __init__(self, data: bytes, *, what: str = "payload") -> None:
        self._data = data
        self._what = what  # it is, for whoever reads the errors
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes were not read yet."""
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if not 0 <= size <= self.left:
            raise PayloadError(
                f"{self._what} is cut off: {size} more bytes expected, {self.left} left"
            )
        self.at += size
        return self._data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        """Return a whole number of at most ``most``, written in its shortest form."""
        number, end = read_varint(self._data, self.at, len(self._data), what=self._what)
        if number > most:
            raise PayloadError(f"{self._what}: {number} where at most {most} can be")
        if end > self.at + 1 and not self._data[end - 1]:
            raise PayloadError(f"{self._what}: a number that is not in its shortest form")
        self.at = end
        return number

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.left:
            raise PayloadError(f"{self._what}: {self.left} bytes after its end")
