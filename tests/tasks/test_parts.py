"""Parts of tasks have the sizes of SPEC 7.5 (the paper's table 4), and no item is in two."""

import numpy as np
import pytest

from emo_jax.errors import UsageError
from emo_jax.tasks.parts import cut_mmlu, cut_mmlu_pro
from emo_jax.tasks.scoring import normal_words, word_f1
from emo_jax.tasks.suite import LEFT_OUT, MMLU_PRO_CATEGORIES, MMLU_SUBJECTS, suite

# Items of the splits test and validation of each subject of MMLU.
MMLU_ITEMS = {
    "abstract_algebra": (100, 11),
    "anatomy": (135, 14),
    "astronomy": (152, 16),
    "business_ethics": (100, 11),
    "clinical_knowledge": (265, 29),
    "college_biology": (144, 16),
    "college_chemistry": (100, 8),
    "college_computer_science": (100, 11),
    "college_mathematics": (100, 11),
    "college_medicine": (173, 22),
    "college_physics": (102, 11),
    "computer_security": (100, 11),
    "conceptual_physics": (235, 26),
    "econometrics": (114, 12),
    "electrical_engineering": (145, 16),
    "elementary_mathematics": (378, 41),
    "formal_logic": (126, 14),
    "global_facts": (100, 10),
    "high_school_biology": (310, 32),
    "high_school_chemistry": (203, 22),
    "high_school_computer_science": (100, 9),
    "high_school_european_history": (165, 18),
    "high_school_geography": (198, 22),
    "high_school_government_and_politics": (193, 21),
    "high_school_macroeconomics": (390, 43),
    "high_school_mathematics": (270, 29),
    "high_school_microeconomics": (238, 26),
    "high_school_physics": (151, 17),
    "high_school_psychology": (545, 60),
    "high_school_statistics": (216, 23),
    "high_school_us_history": (204, 22),
    "high_school_world_history": (237, 26),
    "human_aging": (223, 23),
    "human_sexuality": (131, 12),
    "international_law": (121, 13),
    "jurisprudence": (108, 11),
    "logical_fallacies": (163, 18),
    "machine_learning": (112, 11),
    "management": (103, 11),
    "marketing": (234, 25),
    "medical_genetics": (100, 11),
    "miscellaneous": (783, 86),
    "moral_disputes": (346, 38),
    "moral_scenarios": (895, 100),
    "nutrition": (306, 33),
    "philosophy": (311, 34),
    "prehistory": (324, 35),
    "professional_accounting": (282, 31),
    "professional_law": (1534, 170),
    "professional_medicine": (272, 31),
    "professional_psychology": (612, 69),
    "public_relations": (110, 12),
    "security_studies": (245, 27),
    "sociology": (201, 22),
    "us_foreign_policy": (100, 11),
    "virology": (166, 18),
    "world_religions": (171, 19),
}
# Sizes of table 4: for choosing, and for measuring.
MMLU_PARTS = {
    "biology": (320, 182),
    "business": (308, 176),
    "chemistry": (211, 122),
    "computer_science": (289, 165),
    "culture": (232, 134),
    "economics": (525, 298),
    "engineering": (103, 58),
    "geography": (140, 80),
    "health": (1162, 659),
    "history": (658, 373),
    "law": (1250, 707),
    "math": (752, 427),
    "other": (825, 467),
    "philosophy": (1427, 808),
    "physics": (453, 257),
    "politics": (459, 260),
    "psychology": (823, 463),
}
MMLU_PRO_PARTS = {
    "math": (601, 750),
    "health": (388, 430),
    "physics": (580, 719),
    "business": (376, 413),
    "biology": (347, 370),
    "chemistry": (513, 619),
    "computer_science": (224, 186),
    "economics": (398, 446),
    "engineering": (448, 521),
    "philosophy": (260, 239),
    "other": (430, 494),
    "history": (213, 168),
    "psychology": (380, 418),
    "law": (501, 600),
}


def _apart(cut, items):
    both = np.concatenate([cut.choosing, cut.measuring])
    assert sorted(both.tolist()) == list(range(items))
    assert (np.diff(cut.measuring) > 0).all()
    return len(cut.choosing), len(cut.measuring)


def test_every_subject_of_mmlu_is_in_one_category():
    subjects = [s for category in MMLU_SUBJECTS.values() for s in category]
    assert sorted(subjects) == sorted(MMLU_ITEMS) and len(MMLU_SUBJECTS) == 17
    assert [sum(counts) for counts in zip(*MMLU_ITEMS.values(), strict=True)] == [14042, 1531]


@pytest.mark.parametrize("category", MMLU_SUBJECTS)
def test_parts_of_mmlu_have_the_sizes_of_the_paper(category):
    counts = [MMLU_ITEMS[subject] for subject in MMLU_SUBJECTS[category]]
    sizes = [_apart(cut_mmlu(test), test) for test, _ in counts]
    choosing = sum(first for first, _ in sizes) + sum(validation for _, validation in counts)
    assert (choosing, sum(last for _, last in sizes)) == MMLU_PARTS[category]


@pytest.mark.parametrize("category", MMLU_PRO_CATEGORIES)
def test_parts_of_mmlu_pro_have_the_sizes_of_the_paper(category):
    items = sum(MMLU_PRO_PARTS[category])
    assert _apart(cut_mmlu_pro(items), items) == MMLU_PRO_PARTS[category]


def test_parts_are_shuffled_and_the_same_every_time():
    cut, again = cut_mmlu(50), cut_mmlu(50)
    assert (cut.choosing == again.choosing).all()
    assert sorted(cut.choosing.tolist()) != list(range(30))
    assert _apart(cut_mmlu_pro(90), 90) == (54, 36)


# --- the suite -----------------------------------------------------------------------------------


def test_the_suite_is_the_paper_s_tasks():
    rows = suite(["emo"])
    count = lambda word: sum(row.word == word for row in rows)  # noqa: E731
    assert {w: count(w) for w in ("mc9", "gen5", "gsm8k", "mmlu", "mmlu_pro")} == {
        "mc9": 9,
        "gen5": 5,
        "gsm8k": 1,
        "mmlu": 17,
        "mmlu_pro": 14,
    }
    out = [row for row in rows if not row.averaged]
    assert [row.name for row in out] == [f"mmlu {LEFT_OUT}", f"mmlu_pro {LEFT_OUT}"]
    shots = {row.name: row.changes["num_fewshot"] for row in rows}
    assert {n: s for n, s in shots.items() if s != 5} == {"coqa": 0, "gsm8k": 8}
    assert suite(["gsm8k", "mc9", "gsm8k"]) and len(suite(["gsm8k", "mc9", "gsm8k"])) == 10
    with pytest.raises(UsageError, match="--suite mmmu: must be one of emo, mc9"):
        suite(["mmmu"])


@pytest.mark.parametrize(
    ("text", "gold", "f1"),
    [
        ("The Court!", "court", 1.0),
        ("a court of law", "the law", 0.5),
        ("oven", "court", 0.0),
        ("", "the", 1.0),
        ("", "court", 0.0),
        ("court court", "court", 2 / 3),
    ],
)
def test_f1_of_words(text, gold, f1):
    assert word_f1(text, gold) == pytest.approx(f1)
    assert word_f1(gold, text) == pytest.approx(f1)
    assert normal_words("An  apple's") == ["apples"]
