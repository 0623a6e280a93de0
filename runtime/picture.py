"""Picture: what the headers of one coded picture say about its dependencies; and the bits they are read from."""

from dataclasses import dataclass

__all__ = ["Bits", "Lists", "Picture"]


@dataclass(frozen=True, slots=True)
class Lists:
    """The reference picture lists of an H.264 slice, one for P, two for B: sizes, reordering, and what is given up."""

    active: tuple[int, ...]
    moves: tuple[tuple[int, ...], ...]  # signed steps of PicNum
    forgets: tuple[int, ...] = ()  # differences of PicNum


@dataclass(slots=True, kw_only=True, unsafe_hash=True)
class Picture:
    """One coded picture, as its headers describe it. A value that nobody changes; frozen, it would take thrice as
    long to make, and there is one for every packet of video.

    ``reset``: nothing from here on needs anything before it. ``recovery``: it carries a recovery point; after so many
    more reference pictures everything shown is right (0 = from this one on, in order of presentation).
    """

    kind: str = ""  # I, P or B; "" = not read
    reset: bool = False
    recovery: int | None = None
    disposable: bool = False  # no other picture is predicted from it
    shown: bool = True
    leading: bool = False  # H.265 RASL: needs what precedes its random access point
    independent: bool = False  # all its blocks are intra
    field: bool = False  # half a picture of an interlaced pair
    frame_num: int | None = None  # H.264: reference pictures since the IDR, modulo max_frame_num
    max_frame_num: int = 0
    gaps_allowed: bool = False  # H.264: the encoder may skip frame numbers
    order: int | None = None  # place in order of presentation: H.264 pic_order_cnt_lsb, MPEG temporal_reference
    order_size: int = 0  # its modulus
    references: int = 16  # H.264: how many pictures are kept for prediction
    lists: Lists | None = None  # H.264: which of them this one may use; None = not read
    new_group: bool = False  # MPEG-1/2: a group of pictures begins, temporal references restart
    closed: bool = False  # MPEG-1/2: leading B pictures of this group need nothing before it
    reads: tuple[int, ...] = ()  # slots it is predicted from (VP9, AV1)
    writes: int = 0  # bit mask of the slots it replaces
    resets_contexts: bool = False  # entropy coding starts afresh
    reads_contexts: bool = False


class Bits:
    """Big-endian bits with Exp-Golomb codes (H.264, section 9.1); IndexError at the end."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    @property
    def left(self) -> int:
        """Bits not read yet."""
        return self._left

    def u(self, n: int) -> int:
        if n > self._left:
            raise IndexError("header ends early")
        self._left -= n
        return (self._value >> self._left) & ((1 << n) - 1)

    def flag(self) -> bool:
        return self.u(1) == 1

    def ue(self) -> int:
        rest = self._value & ((1 << self._left) - 1)
        zeros = self._left - rest.bit_length()
        if zeros > 32 or 2 * zeros >= self._left:
            raise IndexError("header ends early, or Exp-Golomb code too long")
        self._left -= 2 * zeros + 1
        return (rest >> self._left) - 1

    def se(self) -> int:
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -(code // 2)
