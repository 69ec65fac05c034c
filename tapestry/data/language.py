"""Languages: tags as people write them, and what a text is written in.

Identification is CLD2's (about 160 languages, n-grams, offline). It says when it cannot tell, which
short and mixed texts often are; a text is only ever called foreign when it can.
"""

import re

import pycld2

from tapestry.errors import ConfigError

SEVERAL = "mul"
"""The tag of a source whose documents are each identified."""
UNKNOWN = "und"
"""The tag of a text whose language nobody has said and nothing could tell."""

_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*")
_SAMPLE_CHARACTERS = 200
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")

_PAIRS = (
    "aaaar ababk afafr akaka sqsqi amamh arara hyhye asasm ayaym azaze babak eueus bebel bnben "
    "bhbih bibis bsbos brbre bgbul mymya cacat nynya cocos hrhrv csces zhzho dadan dvdiv nlnld "
    "dzdzo eneng eoepo etest fofao fjfij fifin frfra fyfry glglg lglug kakat dedeu elell klkal "
    "gngrn guguj hthat hahau heheb iwheb hihin huhun isisl igibo idind iaina ieile iuiku ikipk "
    "gagle itita jvjav jwjav jajpn knkan kskas kkkaz kmkhm rwkin kukur kykir kokor lolao lalat "
    "lvlav lnlin ltlit lbltz mkmkd mgmlg msmsa mlmal mtmlt gvglv mimri mrmar roron mnmon nanau "
    "nrnbl nenep nonor nbnob nnnno ococi orori omorm pspus fafas plpol ptpor papan quque rmroh "
    "rnrun rurus smsmo sgsag sasan gdgla srsrp stsot snsna sdsnd sisin ssssw skslk slslv sosom "
    "esspa susun swswa svswe tltgl tgtgk tatam tttat tetel ththa bobod titir toton tstso tntsn "
    "trtur tktuk uguig ukukr ururd uzuzb veven vivie vovol cycym wowol xhxho yiyid yoyor zazha "
    "zuzul aeave anarg avava bmbam ceche chcha crcre cuchu cvchv eeewe ffful hohmo hzher ioido "
    "iiiii kgkon kikik kjkua krkau kvkom kwcor lilim lulub mhmah ndnde ngndo nvnav ojoji ososs "
    "pipli scsrd sesme twtwi tytah wawln"
)
"""ISO 639-1 and 639-3 of the languages that have both, without a gap between the two, and of
`iw` and `jw`, their older codes."""

_TWO_TO_THREE = {pair[:2]: pair[2:] for pair in _PAIRS.split()}
_FAMILIES = (
    ("ara", "arb", "arz", "ary", "apc", "acm", "ajp", "ars", "aeb", "aec"),
    ("zho", "cmn", "yue", "wuu", "lzh", "nan", "hak"),
    ("msa", "zsm", "ind", "zlm", "min", "bjn"),
    ("hbs", "hrv", "srp", "bos", "cnr"),
    ("nor", "nob", "nno", "dan"),
    ("fas", "pes", "prs", "tgk"),
    ("mlg", "plt"),
    ("swa", "swh", "swc"),
    ("orm", "gaz", "hae"),
    ("aze", "azj", "azb"),
    ("uzb", "uzn", "uzs"),
    ("mon", "khk"),
    ("que", "quz", "quy", "quh", "quc"),
    ("lav", "lvs", "ltg"),
    ("est", "ekk"),
    ("kur", "kmr", "ckb"),
    ("pus", "pbt"),
    ("nep", "npi"),
    ("ori", "ory"),
    ("yid", "ydd"),
    ("sqi", "als"),
    ("grn", "gug"),
    ("bih", "bho", "mai", "mag"),
    ("tgl", "fil"),
    ("bod", "dzo"),
    ("glg", "por"),
    ("ces", "slk"),
)
"""Languages under several tags, and those that a short text does not tell apart."""
_FAMILY_OF = {tag: number for number, tags in enumerate(_FAMILIES) for tag in tags}
_IDENTIFIED = {
    code: _TWO_TO_THREE.get(code.split("-")[0], code)
    for name, code in pycld2.LANGUAGES
    if name in pycld2.DETECTED_LANGUAGES and not name.startswith("X_")
}
_NAMED = [
    (_TWO_TO_THREE.get(code, code), name) for name, code in pycld2.LANGUAGES if code.isalpha()
]
_NAMES = {tag: name.title() for tag, name in _NAMED}
_BY_NAME = {name.lower(): tag for tag, name in _NAMED}
_KNOWN = frozenset(_IDENTIFIED.values()) | frozenset(
    tag for tags in _FAMILIES for tag in tags if set(tags) & set(_IDENTIFIED.values())
)


def language_tag(text: str) -> str:
    """Return a tag in its short form: three letters of ISO 639-3 where known, then what follows.

    Raises:
        ConfigError: It is no BCP 47 tag, or begins with two letters that ISO 639-1 does not have.
    """
    head, *rest = text.split("-")
    if not _TAG.fullmatch(text) or (len(head) == 2 and head.lower() not in _TWO_TO_THREE):
        named = _BY_NAME.get(text.strip().lower())
        meant = f"did you mean {named}?" if named else "expected one such as fra, eus or pt-BR;"
        raise ConfigError(
            f"{text!r:.40} is no language tag: {meant} {SEVERAL} for a source in several languages"
        )
    return "-".join([_TWO_TO_THREE.get(head.lower(), head.lower()), *rest])


def language_name(tag: str) -> str:
    """Return what people call a language; its tag if that is not known."""
    return "language unclear" if tag == UNKNOWN else _NAMES.get(tag, tag)


def can_identify(tag: str) -> bool:
    """Whether texts in the language of `tag` can be told from others at all."""
    return tag.split("-", maxsplit=1)[0] in _KNOWN


def identify(text: str) -> str:
    """Return the ISO 639-3 tag of the language that `text` begins in; "" where it is unsure."""
    sample = text[:_SAMPLE_CHARACTERS]
    try:
        is_reliable, _size, found = pycld2.detect(sample, isPlainText=True)
    except pycld2.error:  # it takes no control characters
        try:
            printable = _UNPRINTABLE.sub(" ", sample)
            is_reliable, _size, found = pycld2.detect(printable, isPlainText=True)
        except pycld2.error:
            return ""
    return _IDENTIFIED.get(found[0][1], "") if is_reliable else ""


def kin_of(tag: str) -> frozenset[str]:
    """Return the languages that a text in the language of `tag` may be identified as."""
    wanted = tag.split("-", maxsplit=1)[0]
    return frozenset(_FAMILIES[_FAMILY_OF[wanted]]) if wanted in _FAMILY_OF else frozenset({wanted})
