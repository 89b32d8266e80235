"""What the paper claims, and what our results say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.report import evidence
from experiments.report.evidence import Evidence, Results

ANY = "any"  # of the data sets


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, and how it is looked at."""

    title: str
    says: str  # in our words, with its numbers
    where: str  # in the paper
    look: Callable[[Results], list[Evidence]]
    wants: tuple[str, str]  # the dataset that the statement is about, and the command that runs it

    def of_wanted(self, found: list[Evidence]) -> list[Evidence]:
        """The evidence of the dataset that the statement is about."""
        return [e for e in found if self.wants[0] == ANY or self.wants[0].lower() in e.source.lower()]

    def verdict(self, results: Results) -> str:
        """``holds``, ``does not hold here``, ``not decided``, or ``needs DATASET``; of the wanted dataset alone, if there is anything of it."""
        found = self.look(results)
        own = self.of_wanted(found)
        if not found:
            return "not measured yet" if self.wants[0] == ANY else f"needs {self.wants[0]}"
        verdict = evidence.together([e.verdict for e in own or found])
        return verdict if own else f"{verdict} (other data); needs {self.wants[0]}"


TABLE1 = (
    "python -m experiments.table1 --data.dataset deepglobe --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"
)
ABLATION = "python -m experiments.ablation --data.dataset deepglobe --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"
CLAIMS = (
    Claim(
        "Best accuracy on DeepGlobe",
        "GLCANet 73.4 mIoU, GLNet G<=>L 71.6, G=>L 70.9, the best of six networks of one view 70.1 (FCN-8s, whole scene)",
        "Table 1",
        evidence.accuracy,
        ("DeepGlobe", TABLE1),
    ),
    Claim(
        "Less memory than GLNet G<=>L",
        "GLCANet 1766 MB, GLNet G<=>L 1865 MB, G=>L 1395 MB",
        "Table 1",
        evidence.memory_against_glnet,
        (ANY, TABLE1),
    ),
    Claim(
        "Less memory than networks on the whole scene",
        "GLCANet 1766 MB, the six others 2557 (ICNet) to 10339 MB (SegNet)",
        "Table 1",
        evidence.memory_against_whole,
        (ANY, TABLE1),
    ),
    Claim(
        "Best accuracy on Vaihingen",
        "GLCANet 82.4 mIoU, SegGPT 80.4, BSNet 80.2, DeepLabv3+ 79.0",
        "Table 2",
        evidence.isprs("vaihingen", 82.4),
        ("Vaihingen", "python -m experiments.table2 --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"),
    ),
    Claim(
        "Best accuracy on Potsdam",
        "GLCANet 80.4 mIoU, SegGPT 78.2, BSNet 77.5, DeepLabv3+ 73.8",
        "Table 3",
        evidence.isprs("potsdam", 80.4),
        ("Potsdam", "python -m experiments.table3 --data.dir DIR --backbone FILE --seeds 3 --budget 60minutes"),
    ),
    Claim(
        "Two views are better than one",
        "what the method is for; no row of the paper's tables has its local branch alone",
        "Sections 1 and 3",
        evidence.two_views,
        (ANY, TABLE1),
    ),
    Claim(
        "The mask helps",
        "73.4 with mask and self-attention, 72.4 with self-attention alone (what takes the mask's place is not said; here none)",
        "Table 4",
        evidence.part("footprint-sa", "cross-sa", "no-mask", "mask=none"),
        ("DeepGlobe", ABLATION),
    ),
    Claim(
        "Self-attention helps",
        "73.4 with mask and self-attention, 73.0 with the mask alone",
        "Table 4",
        evidence.part("footprint-sa", "footprint", "no-self", "self_attention=False"),
        ("DeepGlobe", ABLATION),
    ),
    Claim(
        "Cross-attention is better than GLNet's sharing",
        "GLCANet 73.4 mIoU with attention, GLNet 71.6 with concatenation",
        "Table 1",
        evidence.part("footprint-sa", "glnet-sa", "glnet", "sharing=glnet"),
        ("DeepGlobe", ABLATION),
    ),
)
