"""Whole numbers and slices in a byte stream, read within bounds. Pure, and without numpy."""

from models.errors import PayloadError

__all__ = ["Reader", "varint"]

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


class Reader:
    """Reads a payload from front to back; whatever is not there is a PayloadError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        """How many bytes were not read yet."""
        return len(self._data) - self.at

    def take(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if not 0 <= size <= self.left:
            raise PayloadError(f"payload is cut off: {size} more bytes expected, {self.left} left")
        self.at += size
        return self._data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        """Return a whole number of at most ``most``, written in its shortest form."""
        number = 0
        for shift in range(0, 56, 7):
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if number > most:
                    raise PayloadError(f"payload: {number} where at most {most} can be")
                if byte == 0 and shift:
                    break
                return number
        raise PayloadError("payload: a number that is not in its shortest form")

    def finish(self) -> None:
        """Check that nothing follows."""
        if self.left:
            raise PayloadError(f"payload: {self.left} bytes after its end")
