"""What our labels are called elsewhere: SNOMED CT where a code is certain, a scheme of our own where none is.

Certain means that two sources agree and the check digit is right (Verhoeff; SNOMED CT release file specification):

- 1386000, 274100004, 21454007, 35486000, 82999001: SNOMED CT International, names as below. 1386000, 35764002,
  303653007, 363698007 stand in PS3.16 too (its concept dictionary in pydicom 3.0.2); 274100004 and 21454007 in the
  published stroke value sets of FHIR guides; 35486000 and 82999001 in code lists made from the OMOP vocabulary.
- 274100004 is the code that ICD-10 I61 (intracerebral) is commonly mapped to. Our label is wider by bleeds of the
  cerebellum and the brain stem.
- Intraventricular: no code that two sources agree on was found (a published one, 274110009, fails its check digit), so
  it is 99FASTICH IVH with the finding site 35764002 |Brain ventricle structure|.

Scheme 99FASTICH is private (PS3.16 section 8.2: designators with 99 are) and wholly listed here.
"""

from dataclasses import dataclass

PRIVATE = "99FASTICH"
PRIVATE_NAME = "fastich private codes"
PRIVATE_ORGANISATION = "fastich"


@dataclass(frozen=True, slots=True)
class Concept:
    """A code, its scheme and what it means: PS3.16's triplet."""

    code: str
    scheme: str
    meaning: str


FINDINGS = {
    "epidural": Concept("82999001", "SCT", "Epidural intracranial hemorrhage"),
    "intraparenchymal": Concept("274100004", "SCT", "Cerebral hemorrhage"),
    "intraventricular": Concept("IVH", PRIVATE, "Intraventricular hemorrhage"),
    "subarachnoid": Concept("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
    "subdural": Concept("35486000", "SCT", "Subdural intracranial hemorrhage"),
    "any": Concept("1386000", "SCT", "Intracranial hemorrhage"),
}
SITES = {"intraventricular": Concept("35764002", "SCT", "Brain ventricle")}
CT_HEAD = Concept("303653007", "SCT", "Computed tomography of head")
TRIAGE = Concept("TRIAGE", PRIVATE, "Triage proposal")
TRIAGE_VALUES = {
    "flag": Concept("FLAG", PRIVATE, "Read first: bleed suspected"),
    "clear": Concept("CLEAR", PRIVATE, "In order of arrival: no bleed suspected"),
    "human first": Concept("HUMANFIRST", PRIVATE, "A human decides first: the model abstains"),
    "flagged": Concept("FLAGGED", PRIVATE, "Probability of a bleed reaches the threshold"),
    "not flagged": Concept("NOTFLAGGED", PRIVATE, "Probability of a bleed is below the threshold"),
}
REACHED = Concept("REACHED", PRIVATE, "Probability reaches the threshold")
YES, NO = Concept("373066001", "SCT", "Yes"), Concept("373067005", "SCT", "No")
PROBABILITY = Concept("122157", "DCM", "Probability")
THRESHOLD = Concept("122411", "DCM", "Threshold Value")
COMMENT = Concept("121106", "DCM", "Comment")
NO_UNITS = Concept("1", "UCUM", "no units")
SOURCE_IMAGE = Concept("121322", "DCM", "Source image for image processing operation")
"""PS3.16 CID 7202."""
