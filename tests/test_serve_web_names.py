from hypothesis import given
from hypothesis import strategies as st

from fastich.serve.web.names import age, clean, dicom_date, dicom_time, moment, person_name


def test_names_read_as_people_write_them():
    assert person_name("Doe^Jane^Q^Dr.^Jr.") == "Doe, Dr. Jane Q, Jr."
    assert person_name("Yamada^Tarou=山田^太郎=やまだ^たろう") == "Yamada, Tarou (山田 太郎 / やまだ たろう)"
    assert person_name("^^^^") == person_name("") == ""
    assert person_name("=山田^太郎") == "山田 太郎"


def test_formula_in_a_name_stays_text():
    assert person_name("=cmd|'/C calc'!A0") == "cmd|'/C calc'!A0"


def test_controls_and_invisible_characters_are_gone():
    assert clean("a\x00b\nc\u202eevil\u200b\x1b[31m") == "a b cevil [31m"


def test_long_text_is_cut():
    assert len(clean("x" * 10_000)) == 256


@given(st.text())
def test_clean_text_is_one_printable_line(text):
    found = clean(text)
    assert len(found) <= 256
    assert found == found.strip()
    assert all(character.isprintable() for character in found)


def test_dates_and_times_read_well_or_stay():
    assert (dicom_date("20261125"), dicom_date("2026.11.25"), dicom_date("soon")) == (
        "2026-11-25",
        "2026-11-25",
        "soon",
    )
    assert (dicom_time("074103.5"), dicom_time("07:41"), dicom_time("7")) == ("07:41", "07:41", "7")


def test_ages_are_short_and_never_negative():
    found = [age(seconds) for seconds in (-3, 59, 425, 12_000, 190_000)]
    assert found == ["0 s", "59 s", "7 min 05 s", "3 h 20 min", "2 d 4 h"]
    assert age(425, coarse=True) == "7 min"


def test_moments_are_utc():
    assert moment(1_780_000_000.0) == "2026-05-28T20:26:40Z"
