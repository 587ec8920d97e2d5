"""References of methods and datasets: what a run is cited by, as constants.

An author list or a venue that could not be confirmed is left out, never guessed; the identifier leads to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["article", "book", "inproceedings", "misc"]


@dataclass(frozen=True)
class Reference:
    """One work.

    Attributes
    ----------
    key : str
        BibTeX key; never changes.
    kind : str
        BibTeX entry type.
    title, authors : str
        Authors separated by ``" and "``, ``Given Family`` or ``Family, Given``; empty where not confirmed.
    year : int
        Of the venue in `details`, or of the first version on arXiv.
    details : mapping
        Further BibTeX fields, as plain text.
    """

    key: str
    kind: Kind
    title: str
    authors: str
    year: int
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """``arXiv:...``, ``doi:...`` and ``OpenReview:...`` of the work, as the package's docstrings write them."""
        found = [f"arXiv:{self.details['eprint']}"] if "eprint" in self.details else []
        found += [f"doi:{self.details['doi']}"] if "doi" in self.details else []
        url = self.details.get("url", "")
        return (*found, *([f"OpenReview:{url.partition('id=')[2]}"] if "openreview.net" in url else []))


def arxiv(key: str, eprint: str, year: int, title: str, authors: str, *, note: str = "") -> Reference:
    """A work on arXiv whose venue, if it has one, is only noted."""
    return Reference(key, "misc", title, authors, year, _arxiv(eprint) | ({"note": note} if note else {}))


def proceedings(key: str, eprint: str, year: int, title: str, authors: str, booktitle: str) -> Reference:
    """A conference paper that is on arXiv too; an empty `eprint`: it is not."""
    return Reference(key, "inproceedings", title, authors, year, {"booktitle": booktitle} | _arxiv(eprint))


def _arxiv(eprint: str) -> dict[str, str]:
    return {"eprint": eprint, "archivePrefix": "arXiv"} if eprint else {}


_ICLR = "International Conference on Learning Representations"
_NEURIPS = "Advances in Neural Information Processing Systems"
_EMNLP = "Proceedings of the {} Conference on Empirical Methods in Natural Language Processing"

_METHODS = (
    arxiv(
        "stableedit2026", "2605.11836", 2026,
        "More Edits, More Stable: Understanding the Lifelong Normalization in Sequential Model Editing", "",
        note="StableEdit",
    ),
    arxiv(
        "gu2025ultraedit", "2505.14679", 2025,
        "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models",
        "Xiaojie Gu and Ziying Huang and Jia-Chen Gu and Kai Zhang",
    ),
    arxiv(
        "li2025rledit", "2502.05759", 2025, "Reinforced Lifelong Editing for Language Models",
        "Zherui Li and Houcheng Jiang and Hao Chen and Baolong Bi and Zhenhong Zhou and Fei Sun and Junfeng Fang and Xiang Wang",
        note="ICML 2025",
    ),
    proceedings(
        "tan2024malmen", "2311.04661", 2024, "Massive Editing for Large Language Models via Meta Learning",
        "Chenmien Tan and Ge Zhang and Jie Fu", _ICLR,
    ),
    proceedings(
        "mitchell2022mend", "2110.11309", 2022, "Fast Model Editing at Scale",
        "Eric Mitchell and Charles Lin and Antoine Bosselut and Chelsea Finn and Christopher D. Manning", _ICLR,
    ),
    proceedings(
        "meng2022rome", "2202.05262", 2022, "Locating and Editing Factual Associations in GPT",
        "Kevin Meng and David Bau and Alex Andonian and Yonatan Belinkov", f"{_NEURIPS} 35",
    ),
    proceedings(
        "meng2023memit", "2210.07229", 2023, "Mass-Editing Memory in a Transformer",
        "Kevin Meng and Arnab Sen Sharma and Alex Andonian and Yonatan Belinkov and David Bau", _ICLR,
    ),
    proceedings(
        "fang2025alphaedit", "2410.02355", 2025,
        "AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models",
        "Junfeng Fang and Houcheng Jiang and Kun Wang and Yunshan Ma and Jie Shi and Xiang Wang and Xiangnan He "
        "and Tat-Seng Chua", _ICLR,
    ),
    proceedings(
        "gupta2025encore", "2502.01636", 2025, "Lifelong Knowledge Editing requires Better Regularization",
        "Akshat Gupta and Phudish Prateepamornkul and Maochuan Lu and Ahmed Alaa and Thomas Hartvigsen "
        "and Gopala Anumanchipalli", "Findings of the Association for Computational Linguistics: EMNLP 2025",
    ),
    proceedings(
        "wang2025lyaplock", "2505.15702", 2025,
        "LyapLock: Bounded Knowledge Preservation in Sequential Large Language Model Editing",
        "Peng Wang and Biyu Zhou and Xuehai Tang and Jizhong Han and Songlin Hu", _EMNLP.format(2025),
    ),
    arxiv(
        "jiang2024nse", "2410.04045", 2024, "Neuron-Level Sequential Editing for Large Language Models",
        "Houcheng Jiang and Junfeng Fang and Tianyu Zhang and An Zhang and Ruipeng Wang and Tao Liang and Xiang Wang",
    ),
    proceedings(
        "gu2024rect", "2401.04700", 2024,
        "Model Editing Harms General Abilities of Large Language Models: Regularization to the Rescue",
        "Jia-Chen Gu and Hao-Xiang Xu and Jun-Yu Ma and Pan Lu and Zhen-Hua Ling and Kai-Wei Chang and Nanyun Peng",
        _EMNLP.format(2024),
    ),
    proceedings(
        "ma2025prune", "2405.16821", 2025, "Perturbation-Restrained Sequential Model Editing",
        "Jun-Yu Ma and Hong Wang and Hao-Xiang Xu and Zhen-Hua Ling and Jia-Chen Gu", _ICLR,
    ),
    Reference(
        "simie2025", "misc", "Towards Lifelong Model Editing via Simulating Ideal Editor", "", 2025,
        {"url": "https://openreview.net/forum?id=VdEG08ZJCH", "note": "SimIE"},
    ),
    arxiv(
        "wang2025memoir", "2506.07899", 2025,
        "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention for LLMs",
        "Ke Wang and Yiming Qin and Nikolaos Dimitriadis and Alessandro Favero and Pascal Frossard",
    ),
    arxiv(
        "liu2026nas", "2602.02543", 2026, "Norm Anchors Make Model Edits Last",
        "Mingda Liu and Zhenghan Zhu and Ze'an Miao and Katsuki Fujisawa",
    ),
    proceedings(
        "micikevicius2018mixed", "1710.03740", 2018, "Mixed Precision Training",
        "Paulius Micikevicius and Sharan Narang and Jonah Alben and Gregory Diamos and Erich Elsen and David Garcia "
        "and Boris Ginsburg and Michael Houston and Oleksii Kuchaiev and Ganesh Venkatesh and Hao Wu", _ICLR,
    ),
)  # fmt: skip

_DATA = (
    Reference(
        "levy2017zsre", "inproceedings", "Zero-Shot Relation Extraction via Reading Comprehension",
        "Omer Levy and Minjoon Seo and Eunsol Choi and Luke Zettlemoyer", 2017,
        {
            "booktitle": "Proceedings of the 21st Conference on Computational Natural Language Learning (CoNLL 2017)",
            "pages": "333--342", "doi": "10.18653/v1/K17-1034",
        },
    ),
    proceedings(
        "yao2023editing", "2305.13172", 2023, "Editing Large Language Models: Problems, Methods, and Opportunities",
        "Yunzhi Yao and Peng Wang and Bozhong Tian and Siyuan Cheng and Zhoubo Li and Shumin Deng and Huajun Chen "
        "and Ningyu Zhang", _EMNLP.format(2023),
    ),
    arxiv(
        "thorne2018fever", "1803.05355", 2018, "FEVER: a large-scale dataset for Fact Extraction and VERification",
        "James Thorne and Andreas Vlachos and Christos Christodoulopoulos and Arpit Mittal", note="NAACL-HLT 2018",
    ),
    proceedings(
        "decao2021editing", "2104.08164", 2021, "Editing Factual Knowledge in Language Models",
        "De Cao, Nicola and Wilker Aziz and Ivan Titov", _EMNLP.format(2021),
    ),
    arxiv(
        "petroni2021kilt", "2009.02252", 2020, "KILT: a Benchmark for Knowledge Intensive Language Tasks",
        "Fabio Petroni and Aleksandra Piktus and Angela Fan and Patrick Lewis and Majid Yazdani and De Cao, Nicola "
        "and James Thorne and Yacine Jernite and Vladimir Karpukhin and Jean Maillard and Vassilis Plachouras "
        "and Tim Rocktäschel and Sebastian Riedel", note="NAACL-HLT 2021",
    ),
    arxiv(
        "thede2025wikibigedit", "2503.05683", 2025,
        "WikiBigEdit: Understanding the Limits of Lifelong Knowledge Editing in LLMs",
        "Lukas Thede and Karsten Roth and Matthias Bethge and Zeynep Akata and Thomas Hartvigsen",
    ),
    arxiv(
        "xu2024medlasa", "2402.18099", 2024,
        "Editing Factual Knowledge and Explanatory Ability of Medical Large Language Models",
        "Derong Xu and Ziheng Zhang and Zhihong Zhu and Zhenxi Lin and Qidong Liu and Xian Wu and Tong Xu and Wanyu Wang "
        "and Yuyang Ye and Xiangyu Zhao and Enhong Chen and Yefeng Zheng",
    ),
    proceedings(
        "zhong2023mquake", "2305.14795", 2023,
        "MQuAKE: Assessing Knowledge Editing in Language Models via Multi-Hop Questions",
        "Zexuan Zhong and Zhengxuan Wu and Christopher D. Manning and Christopher Potts and Danqi Chen",
        _EMNLP.format(2023),
    ),
    arxiv(
        "zhang2024knowedit", "2401.01286", 2024,
        "A Comprehensive Study of Knowledge Editing for Large Language Models",
        "Ningyu Zhang and Yunzhi Yao and Bozhong Tian and Peng Wang and Shumin Deng and others",
    ),
    proceedings(
        "manakul2023selfcheckgpt", "2303.08896", 2023,
        "SelfCheckGPT: Zero-Resource Black-Box Hallucination Detection for Generative Large Language Models",
        "Potsawee Manakul and Adian Liusie and Mark J. F. Gales", _EMNLP.format(2023),
    ),
    proceedings(
        "hartvigsen2023grace", "2211.11031", 2023,
        "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors",
        "Thomas Hartvigsen and Swami Sankaranarayanan and Hamid Palangi and Yoon Kim and Marzyeh Ghassemi",
        f"{_NEURIPS} 36",
    ),
    proceedings(
        "wang2024wise", "2405.14768", 2024,
        "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of Large Language Models",
        "Peng Wang and Zexi Li and Ningyu Zhang and Ziwen Xu and Yunzhi Yao and Yong Jiang and Pengjun Xie and Fei Huang "
        "and Huajun Chen", f"{_NEURIPS} 37",
    ),
    Reference(
        "kwiatkowski2019nq", "article", "Natural Questions: A Benchmark for Question Answering Research",
        "Tom Kwiatkowski and Jennimaria Palomaki and Olivia Redfield and Michael Collins and Ankur Parikh and others", 2019,
        {
            "journal": "Transactions of the Association for Computational Linguistics", "volume": "7",
            "pages": "453--466", "doi": "10.1162/tacl_a_00276",
        },
    ),
    arxiv(
        "wang2024easyedit", "2308.07269", 2023,
        "EasyEdit: An Easy-to-use Knowledge Editing Framework for Large Language Models",
        "Peng Wang and Ningyu Zhang and Bozhong Tian and Zekun Xi and Yunzhi Yao and others",
    ),
    proceedings(
        "wang2019glue", "1804.07461", 2019,
        "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding",
        "Alex Wang and Amanpreet Singh and Julian Michael and Felix Hill and Omer Levy and Samuel R. Bowman", _ICLR,
    ),
    proceedings(
        "hendrycks2021mmlu", "2009.03300", 2021, "Measuring Massive Multitask Language Understanding",
        "Dan Hendrycks and Collin Burns and Steven Basart and Andy Zou and Mantas Mazeika and Dawn Song "
        "and Jacob Steinhardt", _ICLR,
    ),
    arxiv(
        "cui2020mutual", "2004.04494", 2020, "MuTual: A Dataset for Multi-Turn Dialogue Reasoning",
        "Leyang Cui and Yu Wu and Shujie Liu and Yue Zhang and Ming Zhou", note="ACL 2020",
    ),
    arxiv(
        "yang2025mirage", "2502.11177", 2025, "The Mirage of Model Editing: Revisiting Evaluation in the Wild",
        "Wanli Yang and Fei Sun and Jiajun Tan and Xinyu Ma and Qi Cao and Dawei Yin and Huawei Shen and Xueqi Cheng",
    ),
)  # fmt: skip

#: by key: methods, precision, datasets and benchmarks
PAPERS: Mapping[str, Reference] = {one.key: one for one in (*_METHODS, *_DATA)}
