"""English plurals of class names."""

# already plural, not countable, or the same in singular and plural
_WITHOUT = frozenset(
    (
        "bacon", "bagpipes", "binoculars", "blowfish", "bowling", "bread", "broccoli", "butter", "cattle", "cherries",
        "chopsticks", "clothes", "clothing", "corn", "deer", "dice", "fish", "food", "fries", "fruit", "furniture",
        "garlic", "goldfish", "grapes", "grass", "headphones", "honey", "luggage", "milk", "moose", "money", "pancakes",
        "pong", "poop", "popcorn", "rice", "sand", "sheep", "shrimp", "snow", "squid", "sushi", "swine", "up", "water",
        "glasses", "eyeglasses", "sunglasses",
    )
)  # fmt: skip
_IRREGULAR = {
    "cactus": "cacti", "calf": "calves", "child": "children", "echo": "echoes", "elf": "elves", "foot": "feet",
    "goose": "geese", "half": "halves", "hero": "heroes", "knife": "knives", "leaf": "leaves", "life": "lives",
    "loaf": "loaves", "man": "men", "mango": "mangoes", "mouse": "mice", "ox": "oxen", "person": "people",
    "potato": "potatoes", "quiz": "quizzes", "scarf": "scarves", "shelf": "shelves", "thief": "thieves",
    "tomato": "tomatoes", "tooth": "teeth", "torpedo": "torpedoes", "volcano": "volcanoes", "wife": "wives",
    "wolf": "wolves",
}  # fmt: skip
_ENDS_IN_S = ("atlas", "canvas", "gas", "iris", "lens")
_MEN = ("fireman", "policeman", "postman", "snowman", "sportsman", "fisherman", "horseman", "gentleman")


def plural(name: str) -> str | None:
    """The plural of a name of one or more words, the last of which is inflected; None if it does not differ or is not
    used."""
    *before, last = name.split(" ")
    inflected = _plural(last.lower())
    if inflected is None or not last:
        return None
    written = inflected if last.islower() else inflected.capitalize() if last.istitle() else f"{last}s"
    return " ".join([*before, written])


def _plural(word: str) -> str | None:
    if word in _WITHOUT or not word.isalpha():
        return None
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _MEN or word.endswith("woman"):
        return word[:-2] + "en"
    if word.endswith("s") and not word.endswith(("ss", "us")) and word not in _ENDS_IN_S:
        return None  # as a rule it is a plural
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
