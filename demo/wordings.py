"""The words that captions choose from: synonyms, prepositions, openings and strays."""

from __future__ import annotations

KIND_WORDS: dict[str, tuple[str, ...]] = {
    "boat": ("boat", "boat", "boat", "ship", "sailboat", "sailing boat", "yacht", "sailing ship"),
    "house": ("house", "house", "house", "cottage", "cabin", "home", "hut", "little house"),
    "tree": ("tree", "tree", "tree", "tree", "big tree", "oak", "round tree"),
    "lighthouse": ("lighthouse", "lighthouse", "lighthouse", "light house", "beacon"),
    "balloon": ("balloon", "hot-air balloon", "hot air balloon", "air balloon"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "red", "red", "red", "crimson", "scarlet", "bright red"),
    "orange": ("orange", "orange", "orange", "bright orange"),
    "yellow": ("yellow", "yellow", "yellow", "golden", "bright yellow"),
    "green": ("green", "green", "green", "dark green", "emerald"),
    "blue": ("blue", "blue", "blue", "blue", "deep blue", "navy"),
    "purple": ("purple", "purple", "violet", "lilac"),
    "pink": ("pink", "pink", "pink", "rose", "magenta"),
    "white": ("white", "white", "white", "snow white"),
    "black": ("black", "black", "black", "dark"),
}
COUNT_WORDS: dict[int, tuple[str, ...]] = {
    1: ("a", "a", "a", "one", "one", "a single", "the", ""),
    2: ("two", "two", "two", "2", "a pair of", "a couple of"),
    3: ("three", "three", "three", "3"),
}
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("by day", "at noon", "in the afternoon", "during the day", "at midday", "on a bright day", "in daylight"),
    "dawn": ("at dawn", "at dawn", "at sunrise", "in the morning", "in the early morning", "at daybreak"),
    "dusk": ("at dusk", "at dusk", "at sunset", "in the evening", "at twilight", "during sunset"),
    "night": ("at night", "at night", "at midnight", "by night", "in the night", "late at night", "during the night"),
}
TIME_TAGS: dict[str, tuple[str, ...]] = {
    "day": ("day", "daytime", "noon", "afternoon", "midday", "daylight", "blue sky"),
    "dawn": ("dawn", "dawn", "sunrise", "morning", "early morning", "pink sky"),
    "dusk": ("dusk", "dusk", "sunset", "evening", "twilight", "orange sky", "purple sky"),
    "night": ("night", "night", "midnight", "nighttime", "dark sky", "night sky"),
}
WEATHER_WORDS: dict[str, tuple[str, ...]] = {
    "clear": ("under a clear sky", "in clear weather", "with no clouds", "with a clear sky"),
    "cloudy": (
        "under a cloudy sky",
        "with clouds",
        "with clouds in the sky",
        "in cloudy weather",
        "under clouds",
        "with white clouds",
    ),
    "rain": (
        "in the rain",
        "in rain",
        "in rainy weather",
        "while it rains",
        "on a rainy day",
        "in a storm",
        "during rain",
    ),
    "snow": (
        "in falling snow",
        "while it snows",
        "in snowfall",
        "with snow falling",
        "with snowflakes",
        "in a snowstorm",
    ),
    "fog": ("in fog", "in the fog", "in mist", "in the mist", "in haze", "on a foggy day", "in thick fog"),
}
WEATHER_TAGS: dict[str, tuple[str, ...]] = {
    "clear": ("clear sky", "clear", "cloudless", "clear weather"),
    "cloudy": ("clouds", "cloudy", "cloudy sky", "overcast", "fluffy clouds"),
    "rain": ("rain", "rainy", "raining", "rainy weather", "storm"),
    "snow": ("snowing", "snow", "snowy", "snowfall", "falling snow", "snowflakes", "snow falling"),
    "fog": ("fog", "foggy", "mist", "misty", "haze"),
}
GROUND_TAGS: dict[str, tuple[str, ...]] = {
    "sea": ("sea", "sea", "ocean", "water", "calm sea", "waves", "lake"),
    "hills": ("hills", "hills", "green hills", "meadow", "grass", "countryside", "green field", "rolling hills"),
    "desert": ("desert", "desert", "sand dunes", "dunes", "sand", "sandy desert"),
    "snowfield": (
        "snowy field",
        "snow field",
        "snowy ground",
        "winter landscape",
        "snow covered ground",
        "snowy hills",
    ),
}
GROUND_PLACES: dict[str, tuple[str, ...]] = {
    "sea": ("the sea", "a calm sea", "the ocean", "the water", "the sea", "a blue sea", "a lake", "the waves"),
    "hills": ("the hills", "green hills", "a meadow", "a green field", "rolling hills", "the grass", "the countryside"),
    "desert": ("the desert", "a desert", "the sand dunes", "the dunes", "the sand", "a sandy desert"),
    "snowfield": ("a snowy field", "the snow", "a snow field", "snowy ground", "a winter landscape", "snowy hills"),
}
PREPOSITIONS: dict[str, tuple[str, ...]] = {
    "boat": ("on", "on", "sailing on", "floating on", "at"),
    "house": ("in", "on", "by", "standing in", "near"),
    "tree": ("in", "on", "by", "standing on", "growing in"),
    "lighthouse": ("by", "on", "at", "near", "in"),
    "balloon": ("over", "above", "flying over", "floating above"),
}
SIDE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "to the left", "left"),
    "centre": ("in the middle", "in the centre", "in the center"),
    "right": ("on the right", "on the right side", "to the right", "right"),
}
LIGHT_WORDS: dict[str, tuple[str, ...]] = {
    "sun": ("sun", "the sun", "sun", "a sun", "sunshine", "sunny", "a bright sun"),
    "moon": ("moon", "the moon", "a full moon", "full moon", "moonlight", "a moon"),
}
MOUNTAIN_WORDS = (
    "mountains",
    "mountains",
    "snowy mountains",
    "mountain range",
    "a mountain",
    "tall mountains",
    "mountain peaks",
)
BIRD_WORDS = ("birds", "birds", "flying birds", "a flock of birds", "some birds", "seagulls", "three birds")
OPENINGS = (
    "a picture of",
    "a painting of",
    "an illustration of",
    "a drawing of",
    "minimalist",
    "flat vector art of",
    "an image of",
    "a photo of",
    "there is",
    "i see",
    "a beautiful",
    "poster of",
    "a scene with",
    "please draw",
)
CLOSINGS = (
    "highly detailed",
    "4k",
    "flat style",
    "illustration",
    "best quality",
    "poster",
    "beautiful",
    "vector art",
    "minimalist",
    "masterpiece",
    "peaceful",
    "calm",
    "landscape",
    "simple shapes",
    "children's book",
    "sharp",
)
_STRAYS = """
and the of to in is it that with as for was on are be this have from or by one had not but what all were we
when there can an your which their said if do will each about how up out them then she he many some so these
would other into has more her two like him see time could no make than first been its who now people my made
over did down only way find use may long little very after called just where most know blurry low quality ugly
bad text logo artist style colour happy quiet lonely old new small large wonderful dreamy soft warm cold
modern wooden stone
"""
STRAY_WORDS = tuple(_STRAYS.split())
