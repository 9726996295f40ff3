import struct

import google_crc32c
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich.errors import RecordError
from fastich.records import codec, format
from fastich.records.writer import ShardWriter


def example_class():
    """tf.train.Example as the protobuf library knows it, from a descriptor made here."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")

    def message(parent, name):
        made = parent.add()
        made.name = name
        return made

    def add(to, name, number, kind, label=field.LABEL_OPTIONAL, type_name=None, oneof=None):
        made = to.field.add(name=name, number=number, type=kind, label=label)
        if type_name:
            made.type_name = type_name
        if oneof is not None:
            made.oneof_index = oneof

    lists = (("BytesList", field.TYPE_BYTES), ("FloatList", field.TYPE_FLOAT), ("Int64List", field.TYPE_INT64))
    for name, kind in lists:
        add(message(file.message_type, name), "value", 1, kind, field.LABEL_REPEATED)
    feature = message(file.message_type, "Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(lists, 1):
        snake = name.lower().replace("list", "_list")
        add(feature, snake, number, field.TYPE_MESSAGE, type_name=f".tf.{name}", oneof=0)
    features = message(file.message_type, "Features")
    entry = message(features.nested_type, "FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, type_name=".tf.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, field.LABEL_REPEATED, ".tf.Features.FeatureEntry")
    add(message(file.message_type, "Example"), "features", 1, field.TYPE_MESSAGE, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


EXAMPLE = example_class()
LABELS = [0, 1, 0, 0, 0, 1]


def test_crc32c_is_castagnoli_and_masked_as_in_tfrecord():
    assert format.crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4
    assert format.crc32c(memoryview(b"123456789")) == 0xE3069283
    assert format.masked_crc32c(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) % 2**32


def test_checksum_runs_in_the_compiled_library():
    assert google_crc32c.implementation == "c"


def test_frame_writes_these_exact_bytes():
    data = b"abc"
    expected = struct.pack("<Q", 3) + struct.pack("<I", format.masked_crc32c(struct.pack("<Q", 3)))
    assert format.frame(data) == expected + data + struct.pack("<I", format.masked_crc32c(data))
    assert format.frame(data).hex() == "0300000000000000b099490e6162636e57f121"


def test_frame_of_parts_is_that_of_the_whole():
    assert format.frame(b"a", b"", b"bc") == format.frame(b"abc")
    assert format.frame() == format.frame(b"")


def test_example_writes_these_exact_bytes():
    example, at = format.build_example(b"\xaa\xbb", 300, 5, [0, 1, 0, 0, 0, 1], "1.2")
    entries = (  # map entry, key, name, value, feature, list (bytes 0a, int64 1a), packed or plain value
        ("0a100a06", b"height", "12061a040a02ac02"),
        ("0a140a06", b"labels", "120a1a080a06000100000001"),
        ("0a100a06", b"pixels", "12060a040a02aabb"),
        ("0a0e0a03", b"sop", "12070a050a03312e32"),
        ("0a0e0a05", b"width", "12051a030a0105"),
    )
    assert example.hex() == "0a5a" + "".join(head + name.hex() + tail for head, name, tail in entries)
    assert example[at : at + 2] == b"\xaa\xbb"


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400),
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.lists(st.integers(-1, 1), min_size=6, max_size=6),
    st.text(max_size=64),
)
def test_protobuf_library_reads_our_examples_and_we_read_its(payload, height, width, labels, sop):
    ours, at = format.build_example(payload, height, width, labels, sop)
    assert ours[at : at + len(payload)] == payload
    feature = EXAMPLE.FromString(ours).features.feature
    assert sorted(feature) == ["height", "labels", "pixels", "sop", "width"]
    assert list(feature["pixels"].bytes_list.value) == [payload]
    assert list(feature["height"].int64_list.value) == [height]
    assert list(feature["width"].int64_list.value) == [width]
    assert list(feature["labels"].int64_list.value) == labels
    assert list(feature["sop"].bytes_list.value) == [sop.encode()]
    theirs = memoryview(EXAMPLE.FromString(ours).SerializeToString())
    for data in (memoryview(ours), theirs):
        read = format.parse_example(data)
        assert (read.height, read.width, list(read.labels), read.sop) == (height, width, labels, sop)
        assert data[read.payload_offset :][: read.payload_size] == payload


def test_our_bytes_are_those_of_a_deterministic_protobuf_library():
    ours, _ = format.build_example(b"xyz", 7, 9, [-1] * 6, "1.2.3")
    assert EXAMPLE.FromString(ours).SerializeToString(deterministic=True) == ours


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 255))
def test_parse_refuses_any_other_bytes_with_record_error(noise, at, value):
    good, _ = format.build_example(b"pay", 3, 4, LABELS, "1.2")
    changed = bytearray(good)
    changed[at % len(good)] = value
    for data in (noise, bytes(changed)):
        try:
            read = format.parse_example(memoryview(data))
        except RecordError:
            continue
        assert 0 <= read.payload_offset <= read.payload_offset + read.payload_size <= len(data)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("labels", [1, 0], "feature 'labels' holds 2 values: expected 6"),
        ("height", [1, 2], "feature 'height' holds 2 values, expected 1"),
        ("sop", b"\xff", "feature 'sop' at byte .* is not UTF-8"),
        ("sop", [1], "feature 'sop' at byte .* is not one list of the expected kind"),
        ("more", [1], r"features are \['height', 'labels', 'more'"),
    ],
)
def test_parse_names_the_feature_that_is_wrong(name, value, message):
    example = EXAMPLE.FromString(format.build_example(b"pay", 3, 4, LABELS, "1.2")[0])
    example.features.feature[name].Clear()
    if isinstance(value, bytes):
        example.features.feature[name].bytes_list.value.append(value)
    else:
        example.features.feature[name].int64_list.value.extend(value)
    with pytest.raises(RecordError, match=message):
        format.parse_example(memoryview(example.SerializeToString()))


def test_read_frame_walks_records_and_names_file_and_offset_of_damage():
    first, second = format.frame(b"first"), format.frame(b"second")
    shard = bytearray(first + second)
    assert bytes(format.read_frame(memoryview(shard), 0, "f")) == b"first"
    assert bytes(format.read_frame(memoryview(shard), len(first), "f")) == b"second"
    shard[len(first)] ^= 1
    with pytest.raises(RecordError, match=f"^f:{len(first)}: checksum of the record's length"):
        format.read_frame(memoryview(shard), len(first), "f")
    shard[12] ^= 1
    with pytest.raises(RecordError, match=r"^f:0: checksum of the record's data"):
        format.read_frame(memoryview(shard), 0, "f")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (3, "the file ends at byte 3, inside a record's header"),
        (14, "a record of 5 bytes does not fit into a file of 14"),
    ],
)
def test_read_frame_refuses_a_truncated_file(cut, message):
    with pytest.raises(RecordError, match=message):
        format.read_frame(memoryview(format.frame(b"first")[:cut]), 0, "f")


def test_read_frame_does_not_believe_a_huge_length_with_a_right_checksum():
    length = struct.pack("<Q", 2**63)
    header = length + struct.pack("<I", format.masked_crc32c(length))
    with pytest.raises(RecordError, match="a record of 9223372036854775808 bytes does not fit"):
        format.read_frame(memoryview(header + bytes(100)), 0, "f")


def test_build_example_refuses_five_labels():
    with pytest.raises(AssertionError, match="expected 6 labels, found 5"):
        format.build_example(b"", 1, 1, [0] * 5, "1")


def write_shard(path):
    pixels = [np.full((3 + n, 40), n, np.uint16) for n in range(4)]
    labels = [[0] * 6, [-1] * 6, [1, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]]
    with ShardWriter(path) as writer:
        places = [
            writer.append(codec.encode(image), *image.shape, row, f"1.2.{n}")
            for n, (image, row) in enumerate(zip(pixels, labels, strict=True))
        ]
    return pixels, labels, places


def test_dali_reads_our_shards_as_they_are(tmp_path):
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali import tfrecord as tfrec

    assert dali.__version__
    pixels, labels, places = write_shard(tmp_path / "a.tfrecord")
    index = "".join(f"{place.offset} {place.size}\n" for place in places)
    (tmp_path / "a.idx").write_text(index)

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def read():
        found = fn.readers.tfrecord(
            path=[str(tmp_path / "a.tfrecord")],
            index_path=[str(tmp_path / "a.idx")],
            features={
                "pixels": tfrec.FixedLenFeature((), tfrec.string, ""),
                "height": tfrec.FixedLenFeature([1], tfrec.int64, 0),
                "labels": tfrec.FixedLenFeature([6], tfrec.int64, 0),
                "sop": tfrec.FixedLenFeature((), tfrec.string, ""),
            },
        )
        return found["pixels"], found["height"], found["labels"], found["sop"]

    pipe = read()
    pipe.build()
    payloads, heights, found_labels, sops = pipe.run()
    for n, image in enumerate(pixels):
        height = int(np.asarray(heights[n])[0])
        decoded = codec.decode(np.asarray(payloads[n]).tobytes(), height, 40, "lbp")
        assert np.array_equal(decoded, image)
        assert np.asarray(found_labels[n]).tolist() == labels[n]
        assert np.asarray(sops[n]).tobytes().decode() == f"1.2.{n}"
