"""What the paper of the adversarial transformation says: its numbers, as printed, in per cent.

Xiao & Zheng 2020, One Man's Trash Is Another Man's Treasure (CIFAR-10 and Tiny ImageNet, linf 0.031). Where the text at
hand has lost a number, it is None; no number is read off a plot.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Xiao & Zheng 2020"
#: Clean and worst accuracy on CIFAR-10, and the former minus the latter: tables 2 and 3.
CLEAN, WORST = 82.9, 78.1
#: Mean distance between E[g(x)] and x by the training of the external network: table 1.
DISTANCES = {
    "untrained": 0.005, "1 epoch": 0.033, "2 epochs": 0.036, "5 epochs": 0.067, "10 epochs": 0.130,
    "15 epochs": 0.133, "20 epochs": 0.136, "adversarial": 0.272,
}  # fmt: skip


@dataclass(frozen=True)
class Printed:
    """A row of table 2, 3 or 6.

    Attributes:
        label: as printed.
        defense: the name here; "" where there is none.
        numbers: in the order of the table's columns.
        best: the attack that the paper names as the best; "" in table 2.
    """

    label: str
    defense: str
    numbers: tuple[float | None, ...]
    best: str = ""


TABLE_2 = (
    Printed("No defense", "none", (92.9, 1.3, 3.6, 5.8)),
    Printed("Madry et al.", "madry", (81.7, 77.5, 72.1, 78.4)),
    Printed("Ours", "ours", (82.9, 78.1, 82.0, 81.9)),
)
TABLE_3 = (
    Printed("No defense", "none", (92.9, 0.0), "PGD"),
    Printed("Madry et al.", "madry", (81.7, 42.7), "PGD"),
    Printed("Zhang et al.", "trades", (80.4, 44.6), "PGD"),
    Printed("Xie et al.", "feature-denoising", (83.8, 45.2), "PGD"),
    Printed("Guo et al.", "tv-minimization", (None, 0.0), "BPDA"),
    Printed("Buckman et al.", "thermometer", (None, 0.0), "BPDA"),
    Printed("Dhillon et al.", "sap", (None, 0.0), "BPDA"),
    Printed("Song et al.", "pixeldefend", (None, 5.0), "BPDA"),
    Printed("Ours (under BPDA)", "ours", (82.9, 80.2), "BPDA"),
    Printed("Ours", "ours", (82.9, 78.1), "Transfer"),
)
TABLE_6 = (
    Printed("No defense", "none", (58.2, 0.0), "PGD"),
    Printed("Madry et al.", "madry", (42.7, 17.3), "PGD"),
    Printed("Zhang et al.", "trades", (40.6, 17.7), "PGD"),
    Printed("Mao et al.", "metric-learning", (40.9, 17.5), "PGD"),
    Printed("Ours (under BPDA)", "ours", (48.8, 47.9), "BPDA"),
    Printed("Ours", "ours", (48.8, 40.2), "Transfer"),
)
#: Table 5: standard accuracy, then accuracy under transfer from models of three other step counts. The numbers of steps
#: that the rows and columns stand for are lost in the text at hand; they rise from row to row.
TABLE_5 = (
    (81.7, 69.7, 66.4, 79.5),
    (82.4, 75.6, 78.7, 79.9),
    (83.1, 81.6, 80.7, 81.7),
    (82.7, 81.4, 81.2, 81.0),
    (82.9, 80.9, 81.1, 81.3),
)
#: Under reparameterization: appendix A.2.
REPARAMETERIZED = 81.1
#: Minutes of training for 80 epochs, and seconds for 10,000 inferences, on an RTX 2080 Ti: section 5, appendix B.
TRAINING = {"ours": 82.0, "none": 56.0, "madry": 460.0}
INFERENCE = {"ours": 17.0, "none": 4.0, "madry": 4.0}
#: What the figures say in words, since their numbers are lost.
FIGURES = {
    5: "BPDA finds adversarial examples while g takes few steps, and hardly any once it takes 13.",
    6: "The larger Δ, the more robust under BPDA-I and white-box transfer; Δ = 0.2 is best, beyond it accuracy falls.",
    7: "More draws than 500 gain EOT nothing at Δ = 0.2; at a small Δ more draws do help.",
    8: "The network that imitates g has a low error in training and a high one on test images.",
}
