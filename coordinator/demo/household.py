"""Household voice commands, generated: the data of the default demonstration.

Every sentence comes out of the tables below, which this project invented; nothing was recorded from a person
or taken from a data set, so the text carries the project's own licence (Apache-2.0).

The text is lower-case and without punctuation, as speech recognition gives it. Homes differ in two ways: each home has
three favourite intents, which it uses far more often than the others, and for each of those a word that no other home
uses (a name for the vacuum robot, a byword for turning off the lights, a phrase in another language).
"""

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from coordinator.demo import shares
from zo.examples import Example


def _either(text: str) -> list[str]:
    return text.split("|")


# fmt: off
# What fills a {slot} of a sentence.
SLOTS = {
    "room": _either("kitchen|bedroom|living room|hallway|bathroom|study|kids room|dining room|guest room|basement|attic|garage"),
    "lamp": _either("lights|lamp|ceiling light|floor lamp|spotlights|big light|reading lamp"),
    "door": _either("front door|back door|garage door|patio door|side entrance|door to the garden|cellar door"),
    "shade": _either("blinds|shades|shutters|curtains|roller blinds|window covers"),
    "music": _either("jazz|some old rock|the beatles|piano pieces|my running playlist|salsa|that song from yesterday|something calm"),
    "item": _either("milk|eggs|lemons|oat flakes|toothpaste|coffee beans|rice|dish soap|batteries|bread|butter|onions"),
    "person": _either("mum|grandpa|my sister|the plumber|doctor weber|anna|the school|uncle joe|the neighbours|my boss|david"),
    "span": _either("five minutes|ten minutes|half an hour|ninety seconds|an hour|twenty minutes|three quarters of an hour"),
    "dish": _either("pasta|cake|tea|eggs|laundry|pizza|bread|potatoes"),
    "mess": _either("crumbs|dust|dog hair|sand|cereal|confetti|cat litter|flour"),
    "day": _either("today|tomorrow|on saturday|this afternoon|next week|tonight|in the morning|on my way to work"),
    "number": _either("eighteen|nineteen|twenty|twenty one|twenty two|twenty three"),
}

# What goes before and after a request, what goes before a remark, and when a request is to be carried out.
ASKING = _either("||||please|could you|can you please|hey|okay now|would you|um|go ahead and|i need you to|quickly")
REMARKING = _either("||||hey|um|oh no|well|you know what|listen|so|honestly|hmm")
ENDING = _either("||||||please|thanks|will you|if you can")
TIMES = _either("at seven|before bed|after dinner|in ten minutes|right away|when i leave|once the kids are asleep|around noon")


@dataclass(frozen=True)
class Intent:
    """One class: its describing sentence, its requests (they take "could you" and a time) and its remarks (they take neither)."""

    sentence: str
    requests: tuple[str, ...]
    remarks: tuple[str, ...]


INTENTS = {
    "lights_on": Intent("Turn on the lights.",
        ("turn on the {lamp} in the {room}", "switch the {room} {lamp} on", "put the {lamp} on", "light up the {room}",
         "make it brighter in the {room}"),
        ("it is too dark to read in the {room}", "i can not see a thing in the {room}", "it is pitch black in the {room}")),
    "lights_off": Intent("Turn off the lights.",
        ("turn off the {lamp} in the {room}", "switch the {room} {lamp} off", "kill the {lamp} in the {room}", "make the {room} dark"),
        ("nobody needs the {lamp} in the {room}", "somebody left the {lamp} burning in the {room}", "no more {lamp} in the {room}")),
    "warmer": Intent("Make the house warmer.",
        ("turn up the heating in the {room}", "heat the {room} to {number} degrees", "raise the {room} thermostat", "warm up the {room}"),
        ("i am freezing in the {room}", "my feet are like ice in the {room}", "we are shivering in the {room}",
         "the radiator in the {room} is stone cold")),
    "cooler": Intent("Make the house cooler.",
        ("turn down the heating in the {room}", "cool the {room} to {number} degrees", "start the fan in the {room}",
         "start the air conditioning in the {room}"),
        ("i am sweating in the {room}", "it is boiling in the {room}", "the {room} is like a sauna", "it is so stuffy in the {room}")),
    "music": Intent("Play music.",
        ("play {music} in the {room}", "put on {music}", "start {music}", "let me hear {music} in the {room}"),
        ("i am in the mood for {music}", "it is too quiet in the {room}", "i want to dance to {music}", "how about {music}")),
    "timer": Intent("Set a timer.",
        ("set a timer for {span}", "count down {span}", "remind me in {span}", "wake me in {span}", "let me know after {span}"),
        ("the {dish} will take {span}", "{span} for the {dish}", "the {dish} must come out in {span}", "{span} starting now")),
    "shopping": Intent("Add something to the shopping list.",
        ("add {item} to the list", "put {item} and {item} on the list", "write down {item}", "note that we need {item}"),
        ("we are out of {item}", "somebody finished the {item}", "no {item} left in the house", "i have to buy {item}")),
    "lock": Intent("Lock the doors.",
        ("lock the {door}", "bolt the {door}", "make sure the {door} is shut tight", "secure the {door}"),
        ("did i leave the {door} open", "nobody should get in through the {door}", "we are leaving so check the {door}",
         "anybody could walk in by the {door}")),
    "blinds": Intent("Lower the blinds.",
        ("lower the {shade} in the {room}", "close the {room} {shade}", "pull down the {shade}", "draw the {shade} in the {room}"),
        ("the sun is blinding me in the {room}", "people can look into the {room}", "there is glare on the screen in the {room}",
         "the street lamp shines into the {room}")),
    "vacuum": Intent("Start the vacuum robot.",
        ("vacuum the {room}", "send the robot to the {room}", "hoover the {room}", "clean the floor in the {room}", "suck up the {mess}"),
        ("there is {mess} all over the {room}", "i spilled {mess} in the {room}", "the {room} carpet is full of {mess}")),
    "weather": Intent("Tell me the weather forecast.",
        ("check the forecast for the weekend", "tell me if it rains {day}", "tell me how cold it gets {day}"),
        ("will it rain {day}", "do i need an umbrella {day}", "should i take a jacket {day}", "is it going to be sunny {day}",
         "can we have a picnic {day}", "how hot does it get {day}", "is there snow {day}")),
    "call": Intent("Call somebody on the phone.",
        ("call {person}", "ring {person}", "dial {person}", "get {person} on the line", "put me through to {person}"),
        ("i have to talk to {person}", "maybe {person} can talk now", "i want to hear from {person}", "let us say hi to {person}")),
}

# Each home's favourite intents, and for each of them a word of the home's own and the sentences it is used in.
HOMES: tuple[dict[str, tuple[str, tuple[str, ...]]], ...] = (
    {"vacuum": ("rosie", ("send rosie to the {room}", "let rosie loose in the {room}", "rosie has work in the {room}")),
     "blinds": ("sundown", ("sundown in the {room}", "make it sundown in the {room}", "give me a sundown")),
     "timer": ("egg clock", ("egg clock {span}", "start the egg clock with {span}", "{dish} on the egg clock"))},
    {"warmer": ("cosy", ("make it cosy in the {room}", "get the {room} cosy", "cosy time in the {room}")),
     "call": ("tin can", ("tin can to {person}", "get {person} on the tin can", "tin can {person}")),
     "lights_off": ("owl mode", ("owl mode in the {room}", "make it owl mode", "go to owl mode in the {room}"))},
    {"lights_on": ("aladdin", ("wake aladdin in the {room}", "aladdin in the {room}", "let aladdin shine")),
     "music": ("radiola", ("radiola {music}", "fire up the radiola in the {room}", "radiola in the {room}")),
     "shopping": ("fridge door", ("{item} on the fridge door", "put {item} on the fridge door", "fridge door {item}"))},
    {"cooler": ("penguin", ("bring the penguin to the {room}", "penguin in the {room}", "penguin weather for the {room}")),
     "lock": ("fort knox", ("fort knox at the {door}", "make it fort knox", "fort knox for the {door}")),
     "weather": ("frog", ("ask the frog about {day}", "what does the frog say {day}", "frog report {day}"))},
    {"lights_off": ("licht aus", ("licht aus in the {room}", "mach das licht aus", "bitte licht aus {room}")),
     "warmer": ("heizung", ("heizung an in the {room}", "mach die heizung an", "heizung {number} {room}")),
     "blinds": ("rollo", ("rollo runter in the {room}", "mach das rollo zu", "rollo zu {room}"))},
    {"shopping": ("compras", ("{item} a las compras", "compras {item} and {item}", "apunta {item} para las compras")),
     "call": ("llama", ("llama a {person}", "llama por favor a {person}", "llama ahora a {person}")),
     "music": ("canciones", ("pon canciones in the {room}", "canciones como {music}", "canciones for the {room}"))},
    {"vacuum": ("dustin", ("dustin go to the {room}", "set dustin on the {mess}", "wake dustin for the {room}")),
     "lock": ("drawbridge", ("raise the drawbridge", "drawbridge up at the {door}", "drawbridge for the night")),
     "cooler": ("igloo", ("turn the {room} into an igloo", "igloo in the {room}", "igloo mode for the {room}"))},
    {"weather": ("boots", ("boots or sandals {day}", "is it boots {day}", "do the kids wear boots {day}")),
     "timer": ("beeper", ("beeper in {span}", "set the beeper for the {dish}", "beeper {span}")),
     "lights_on": ("twinkle", ("twinkle in the {room}", "make the {room} twinkle", "twinkle on the {lamp}"))},
)
# fmt: on

FAVOURITE_WEIGHT = 5  # how much likelier a home's favourite intent is than another
OWN_SHARE = 0.4  # of a favourite intent's commands, those that use the home's own word
REQUEST_SHARE = 0.45  # of the other commands, requests; the rest are remarks
TIME_SHARE = 0.25  # of the requests, those that name a time
TRIES = 100  # draws of a sentence before one that was given already is given again


@dataclass(frozen=True)
class Household:
    """The generated data; a row is {"text": str, "label": int}, and a label is an index into `labels`, the describing sentences."""

    labels: list[str]
    homes: list[list[dict]]
    validation: list[dict]
    test: list[dict]

    def write(self, folder: Path) -> None:
        """What is no home's: validation.jsonl, test.jsonl and labels.json."""
        for split, rows in (("validation", self.validation), ("test", self.test)):
            shares.write(folder / f"{split}.jsonl", [Example(**row) for row in rows])
        (folder / "labels.json").write_text(json.dumps(self.labels))


def generate(seed: int = 0, homes: int = 8, examples_per_home: int = 150, validation: int = 300, test: int = 600) -> Household:
    """Make the training rows of each home, and validation and test rows drawn from all homes alike.

    The same arguments give the same rows on every machine. No sentence is given twice, over all splits, as long as the
    tables allow it. Homes beyond the eight of `HOMES` have favourite intents but no words of their own.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    training = [[_row(rng, home, seen) for _ in range(examples_per_home)] for home in range(homes)]
    held_out = [_row(rng, i % homes, seen) for i in range(validation + test)]
    return Household([intent.sentence for intent in INTENTS.values()], training, held_out[:validation], held_out[validation:])


def _row(rng: random.Random, home: int, seen: set[str]) -> dict:
    """Draw one command of a home: an intent in the home's proportions, then a sentence not given yet."""
    names = list(INTENTS)
    own = HOMES[home] if home < len(HOMES) else {}
    favourites = set(own) or {names[(3 * home + i) % len(names)] for i in range(3)}
    name = rng.choices(names, [FAVOURITE_WEIGHT if name in favourites else 1 for name in names])[0]
    for _ in range(TRIES):
        text = _sentence(rng, INTENTS[name], own[name][1] if name in own else ())
        if text not in seen:
            break
    seen.add(text)
    return {"text": text, "label": names.index(name)}


def _sentence(rng: random.Random, intent: Intent, own: tuple[str, ...]) -> str:
    """Choose a template (one of the home's own, a request or a remark), dress it and fill its slots."""
    if own and rng.random() < OWN_SHARE:
        parts = [rng.choice(REMARKING), rng.choice(own), rng.choice(ENDING)]
    elif rng.random() < REQUEST_SHARE:
        request = [rng.choice(ASKING), rng.choice(intent.requests)]
        when = [rng.choice(TIMES)] if rng.random() < TIME_SHARE else []
        parts = [*rng.choice([when + request, request + when]), rng.choice(ENDING)]
    else:
        parts = [rng.choice(REMARKING), rng.choice(intent.remarks)]
    text = " ".join(part for part in parts if part)
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(SLOTS[slot[1]]), text)
