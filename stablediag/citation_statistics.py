"""References of the statistics behind the recorders, as constants."""

from __future__ import annotations

from collections.abc import Mapping

from stablediag.citation_entries import Reference, arxiv, proceedings


def _article(
    key: str, year: int, title: str, authors: str, journal: str, volume: str, pages: str, doi: str = ""
) -> Reference:
    details = {"journal": journal, "volume": volume, "pages": pages} | ({"doi": doi} if doi else {})
    return Reference(key, "article", title, authors, year, details)


_AOS, _JMVA, _BIOMETRIKA = "Annals of Statistics", "Journal of Multivariate Analysis", "Biometrika"

_STATISTICS = (
    _article(
        "marchenko1967distribution", 1967, "Distribution of eigenvalues for some sets of random matrices",
        "V. A. Marčenko and L. A. Pastur", "Mathematics of the USSR-Sbornik", "1", "457--483",
        "10.1070/SM1967v001n04ABEH001994",
    ),
    _article(
        "baik2005phase", 2005,
        "Phase transition of the largest eigenvalue for nonnull complex sample covariance matrices",
        "Jinho Baik and Ben Arous, Gérard and Sandrine Péché", "Annals of Probability", "33", "1643--1697",
        "10.1214/009117905000000233",
    ),
    _article(
        "kritchman2008determining", 2008, "Determining the number of components in a factor model from limited noisy data",
        "Shira Kritchman and Boaz Nadler", "Chemometrics and Intelligent Laboratory Systems", "94", "19--32",
        "10.1016/j.chemolab.2008.06.002",
    ),
    _article(
        "johnstone2001distribution", 2001, "On the distribution of the largest eigenvalue in principal components analysis",
        "Iain M. Johnstone", _AOS, "29", "295--327", "10.1214/aos/1009210544",
    ),
    _article(
        "ledoit2004well", 2004, "A well-conditioned estimator for large-dimensional covariance matrices",
        "Olivier Ledoit and Michael Wolf", _JMVA, "88", "365--411", "10.1016/S0047-259X(03)00096-4",
    ),
    _article(
        "matheron1963principles", 1963, "Principles of geostatistics", "Georges Matheron", "Economic Geology", "58",
        "1246--1266", "10.2113/gsecongeo.58.8.1246",
    ),
    _article(
        "bai1996effect", 1996, "Effect of high dimension: by an example of a two sample problem",
        "Zhidong Bai and Hewa Saranadasa", "Statistica Sinica", "6", "311--329",
    ),
    _article(
        "chen2010two", 2010, "A two-sample test for high-dimensional data with applications to gene-set testing",
        "Song Xi Chen and Ying-Li Qin", _AOS, "38", "808--835", "10.1214/09-AOS716",
    ),
    _article(
        "himeno2014estimations", 2014,
        "Estimations for some functions of covariance matrix in high dimension under non-normality and its applications",
        "Tetsuto Himeno and Takayuki Yamada", _JMVA, "130", "27--44", "10.1016/j.jmva.2014.04.020",
    ),
    _article(
        "dawid1984prequential", 1984,
        "Present position and potential developments: Some personal views: Statistical theory: The prequential approach",
        "A. P. Dawid", "Journal of the Royal Statistical Society. Series A", "147", "278--292", "10.2307/2981683",
    ),
    _article(
        "vitter1985random", 1985, "Random sampling with a reservoir", "Jeffrey S. Vitter",
        "ACM Transactions on Mathematical Software", "11", "37--57", "10.1145/3147.3165",
    ),
    arxiv(
        "mcinnes2018umap", "1802.03426", 2018,
        "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction",
        "Leland McInnes and John Healy and James Melville",
    ),
    proceedings(
        "kornblith2019similarity", "1905.00414", 2019, "Similarity of Neural Network Representations Revisited",
        "Simon Kornblith and Mohammad Norouzi and Honglak Lee and Geoffrey Hinton",
        "Proceedings of the 36th International Conference on Machine Learning",
    ),
    _article(
        "song2012feature", 2012, "Feature selection via dependence maximization",
        "Le Song and Alex Smola and Arthur Gretton and Justin Bedo and Karsten Borgwardt",
        "Journal of Machine Learning Research", "13", "1393--1434",
    ),
    _article(
        "szekely2014partial", 2014, "Partial distance correlation with methods for dissimilarities",
        "Gábor J. Székely and Maria L. Rizzo", _AOS, "42", "2382--2412", "10.1214/14-AOS1255",
    ),
    _article(
        "szekely2013energy", 2013, "Energy statistics: A class of statistics based on distances",
        "Gábor J. Székely and Maria L. Rizzo", "Journal of Statistical Planning and Inference", "143", "1249--1272",
        "10.1016/j.jspi.2013.03.018",
    ),
    _article(
        "dowson1982frechet", 1982, "The Fréchet distance between multivariate normal distributions",
        "D. C. Dowson and B. V. Landau", _JMVA, "12", "450--455", "10.1016/0047-259X(82)90077-X",
    ),
    Reference(
        "ville1939etude", "book", "Étude critique de la notion de collectif", "Jean Ville", 1939,
        {"publisher": "Gauthier-Villars", "address": "Paris"},
    ),
    _article(
        "delapena1999general", 1999, "A general class of exponential inequalities for martingales and ratios",
        "de la Peña, Victor H.", "Annals of Probability", "27", "537--564", "10.1214/aop/1022677271",
    ),
    Reference(
        "shafer2019game", "book", "Game-Theoretic Foundations for Probability and Finance", "Glenn Shafer and Vladimir Vovk",
        2019, {"publisher": "Wiley"},
    ),
    arxiv(
        "shin2022edetectors", "2203.03532", 2022,
        "E-detectors: a nonparametric framework for sequential change detection",
        "Jaehyeok Shin and Aaditya Ramdas and Alessandro Rinaldo",
    ),
    _article(
        "page1954continuous", 1954, "Continuous inspection schemes", "E. S. Page", _BIOMETRIKA, "41", "100--115",
        "10.1093/biomet/41.1-2.100",
    ),
    _article(
        "paulson1942approximate", 1942, "An approximate normalization of the analysis of variance distribution",
        "Edward Paulson", "Annals of Mathematical Statistics", "13", "233--235", "10.1214/aoms/1177731608",
    ),
    _article(
        "brown1975techniques", 1975, "Techniques for testing the constancy of regression relationships over time",
        "R. L. Brown and J. Durbin and J. M. Evans", "Journal of the Royal Statistical Society. Series B", "37",
        "149--192", "10.1111/j.2517-6161.1975.tb01532.x",
    ),
    _article(
        "wilson1927probable", 1927, "Probable inference, the law of succession, and statistical inference",
        "Edwin B. Wilson", "Journal of the American Statistical Association", "22", "209--212",
        "10.1080/01621459.1927.10502953",
    ),
    _article(
        "gorodkin2004comparing", 2004, "Comparing two K-category assignments by a K-category correlation coefficient",
        "Jan Gorodkin", "Computational Biology and Chemistry", "28", "367--374", "10.1016/j.compbiolchem.2004.09.006",
    ),
)  # fmt: skip

#: by key: what the recorders' statistics rest on
STATISTICS: Mapping[str, Reference] = {one.key: one for one in _STATISTICS}
