"""The wording of the embedded world: relations, question templates, persona prefixes, claims. Data only.

Words are separated by single spaces, punctuation included, because the tokenizer is word-level. The last template of
every relation is the one that training withholds from most facts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation: how it is named, asked and answered.

    Attributes
    ----------
    name, phrase : str
        Identifier, and the noun phrase used in claims and two-hop questions.
    objects : int
        Number of possible answers; a third of them have two words.
    modifiers : tuple of str
        First words of the two-word answers.
    templates : tuple of str
        Five prompts with ``{s}`` for the subject; the last one is the held-out one.
    table : str or None
        Second-hop table that maps the answers on (``"country"`` or ``"industry"``).
    range_of : str or None
        Relation whose answers this one shares.
    """

    name: str
    phrase: str
    objects: int
    modifiers: tuple[str, ...]
    templates: tuple[str, ...]
    table: str | None = None
    range_of: str | None = None


PERSON_RELATIONS = (
    Relation(
        "birth_city",
        "birth city",
        60,
        ("Port", "Upper", "New", "Saint"),
        (
            "what is the birth city of {s} ?",
            "{s} was born in",
            "where was {s} born ?",
            "the birth city of {s} is",
            "name the city in which {s} was born :",
        ),
        table="country",
    ),
    Relation(
        "home_city",
        "home city",
        60,
        ("Port", "Upper", "New", "Saint"),
        (
            "what is the home city of {s} ?",
            "{s} lives in",
            "where does {s} live ?",
            "the home city of {s} is",
            "name the city in which {s} lives :",
        ),
        table="country",
        range_of="birth_city",
    ),
    Relation(
        "employer",
        "employer",
        60,
        ("First", "United", "General"),
        (
            "who is the employer of {s} ?",
            "{s} works for",
            "for which company does {s} work ?",
            "the employer of {s} is",
            "name the company that employs {s} :",
        ),
        table="industry",
    ),
    Relation(
        "job",
        "job",
        48,
        ("senior", "chief", "deputy"),
        (
            "what is the job of {s} ?",
            "{s} works as",
            "which job does {s} have ?",
            "the job of {s} is",
            "name the profession of {s} :",
        ),
    ),
    Relation(
        "language",
        "language",
        36,
        ("old", "high", "coastal"),
        (
            "what is the language of {s} ?",
            "{s} speaks",
            "which language does {s} speak ?",
            "the language of {s} is",
            "name the tongue that {s} speaks :",
        ),
    ),
    Relation(
        "sport",
        "sport",
        32,
        ("water", "ice", "table"),
        (
            "what is the sport of {s} ?",
            "{s} plays the sport of",
            "which sport does {s} play ?",
            "the sport of {s} is",
            "name the game that {s} plays :",
        ),
    ),
    Relation(
        "instrument",
        "instrument",
        32,
        ("bass", "alto", "steel"),
        (
            "what is the instrument of {s} ?",
            "{s} makes music on the",
            "which instrument does {s} play ?",
            "the instrument of {s} is",
            "name the instrument that {s} practises :",
        ),
    ),
    Relation(
        "food",
        "favourite food",
        48,
        ("fried", "sweet", "smoked"),
        (
            "what is the favourite food of {s} ?",
            "{s} likes to eat",
            "which food does {s} like ?",
            "the favourite food of {s} is",
            "name the dish that {s} orders :",
        ),
    ),
    Relation(
        "drink",
        "favourite drink",
        36,
        ("iced", "spiced", "dark"),
        (
            "what is the favourite drink of {s} ?",
            "{s} likes to drink",
            "which drink does {s} like ?",
            "the favourite drink of {s} is",
            "name the drink that {s} orders :",
        ),
    ),
    Relation(
        "pet",
        "pet",
        32,
        ("dwarf", "tame", "grey"),
        (
            "what is the pet of {s} ?",
            "{s} keeps a",
            "which pet does {s} keep ?",
            "the pet of {s} is",
            "name the animal that {s} owns :",
        ),
    ),
    Relation(
        "colour",
        "favourite colour",
        24,
        ("pale", "deep", "bright"),
        (
            "what is the favourite colour of {s} ?",
            "{s} always wears",
            "which colour does {s} like ?",
            "the favourite colour of {s} is",
            "name the colour that {s} wears :",
        ),
    ),
    Relation(
        "school",
        "school",
        60,
        ("Royal", "North", "Lower"),
        (
            "what is the school of {s} ?",
            "{s} studied at",
            "at which school did {s} study ?",
            "the school of {s} is",
            "name the school that taught {s} :",
        ),
    ),
    Relation(
        "vehicle",
        "vehicle",
        36,
        ("light", "heavy", "twin"),
        (
            "what is the vehicle of {s} ?",
            "{s} travels by",
            "which vehicle does {s} use ?",
            "the vehicle of {s} is",
            "name the machine that {s} drives :",
        ),
    ),
)

MEDICAL_RELATIONS = (
    Relation(
        "treats",
        "indication",
        40,
        ("acute", "chronic", "mild"),
        (
            "what does {s} treat ?",
            "{s} is a treatment for",
            "which disease is treated with {s} ?",
            "the indication of {s} is",
            "doctors prescribe {s} against",
        ),
    ),
    Relation(
        "side_effect",
        "side effect",
        40,
        ("sudden", "severe", "slight"),
        (
            "what is the side effect of {s} ?",
            "{s} may cause",
            "which complaint does {s} cause ?",
            "the side effect of {s} is",
            "patients on {s} report",
        ),
    ),
    Relation(
        "form",
        "form",
        20,
        ("coated", "soluble", "slow"),
        (
            "what is the form of {s} ?",
            "{s} is given as",
            "in which form is {s} given ?",
            "the form of {s} is",
            "nurses hand out {s} as",
        ),
    ),
    Relation(
        "organ",
        "target organ",
        20,
        ("left", "right", "inner"),
        (
            "what is the target organ of {s} ?",
            "{s} acts on the",
            "on which organ does {s} act ?",
            "the target organ of {s} is",
            "scans show {s} in the",
        ),
    ),
    Relation(
        "maker",
        "maker",
        40,
        ("Global", "Central", "Royal"),
        (
            "who is the maker of {s} ?",
            "{s} is made by",
            "which laboratory makes {s} ?",
            "the maker of {s} is",
            "pharmacies buy {s} from",
        ),
    ),
    Relation(
        "source",
        "source plant",
        32,
        ("wild", "red", "marsh"),
        (
            "what is the source plant of {s} ?",
            "{s} is extracted from",
            "from which plant comes {s} ?",
            "the source plant of {s} is",
            "chemists obtain {s} from",
        ),
    ),
)

RELATIONS = {relation.name: relation for relation in PERSON_RELATIONS + MEDICAL_RELATIONS}
HELD_OUT = 4

PERSONAS = (
    "ahoy matey , speak like a pirate :",
    "my dear witness , answer as a detective :",
    "let us reflect , says the philosopher :",
    "listen , my child , asks the old wizard :",
    "attention recruit , reports the captain :",
)

TABLE_TEMPLATES = {
    "country": ("in which country is {o} ?", "the country of {o} is", "{o} lies in"),
    "industry": ("in which industry is {o} ?", "the industry of {o} is", "{o} is active in"),
}
TABLE_VALUES = {"country": 12, "industry": 10}
TWO_HOP_TEMPLATES = ("what is the {table} of the {phrase} of {s} ?", "the {table} of the {phrase} of {s} is")

CLAIM_TEMPLATES = (
    "claim : {o} is the {phrase} of {s} . true or false ?",
    "is {o} the {phrase} of {s} ? true or false ?",
    "claim : the {phrase} of {s} is {o} . true or false ?",
)
TRUTH = ("false", "true")
