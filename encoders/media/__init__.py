"""Containers and codecs: the only place that opens PyAV.

``demux`` reads packets and never decodes more than one picture (to learn its rotation); ``pictures`` and ``sounds``
decode packets and never open a file; ``read`` joins the two for training and tests; ``write`` makes files. Serving,
feature extraction and training all go through the same two decoders.
"""

from encoders.media.demux import Demuxed, MediaFile, Track
from encoders.media.pictures import Picture, VideoPacketDecoder
from encoders.media.read import MediaClip, Reading, read_all, read_clip
from encoders.media.sounds import AudioPacketDecoder, Sound
from encoders.media.write import AudioTrack, VideoTrack, write_media

__all__ = [
    "AudioPacketDecoder",
    "AudioTrack",
    "Demuxed",
    "MediaClip",
    "MediaFile",
    "Picture",
    "Reading",
    "Sound",
    "Track",
    "VideoPacketDecoder",
    "VideoTrack",
    "read_all",
    "read_clip",
    "write_media",
]
