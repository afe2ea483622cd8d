# SPDX-License-Identifier: Apache-2.0
"""Little stories from a grammar."""
HOMES = {"fox": "den", "cat": "house", "dog": "house", "mouse": "hole", "rabbit": "burrow", "bear": "cave", "bird": "nest",
         "frog": "pond", "duck": "pond", "owl": "tree", "pig": "barn", "horse": "barn", "cow": "barn", "hen": "barn",
         "penguin": "island", "turtle": "pond", "squirrel": "tree", "hedgehog": "garden", "goat": "barn", "lion": "cave"}
NAMES = {"Tim": "he", "Tom": "he", "Ben": "he", "Max": "he", "Sam": "he", "Leo": "he", "Jack": "he", "Mia": "she",
         "Anna": "she", "Lily": "she", "Lucy": "she", "Emma": "she", "Rose": "she", "Molly": "she"}
KINDS = "little small happy brave kind clever shy curious young friendly".split()
THINGS = {"ball": "red", "kite": "blue", "boat": "small", "book": "old", "lamp": "bright", "hat": "green", "drum": "loud",
          "cake": "sweet", "apple": "shiny", "key": "golden", "bell": "silver", "stone": "smooth", "flower": "yellow",
          "scarf": "warm"}
PLACES = ("the forest", "the garden", "the park", "the field", "the hill", "the river", "the village", "the beach")
SKILLS = ("swim", "sing", "dance", "climb a tree", "bake a cake", "read")
DAYS = ("One day", "One morning", "One sunny day", "One cold day", "One evening")
PLOTS = {
    "lost": ["{day} {n} lost {his} {thing}.",
             "{He} looked everywhere, but {he} could not find it.|{n} was very sad and began to cry.",
             "Then {he} met {friend} named {m}.", '"Do not be sad," said {m}. "I will help you."',
             "They looked together, and soon they found the {t} under a tree."
             "|{m} looked behind a big rock, and there was the {t}.",
             '"Thank you," said {n}.|{n} was so happy that {he} jumped up and down.',
             "From that day on, {n} and {m} were good friends."],
    "found": ["{day} {n} found {a_thing} near {place}.", '"What {a_thing}!" said {n}.',
              "But the {t} belonged to {friend} named {m}.",
              "{n} wanted to keep it, but {he} knew that was wrong.|{n} thought about it for a long time.",
              "So {he} gave the {t} back to {m}.", '"You are very kind," said {m}. "Let us play with it together."',
              "They played until the sun went down, and then they went home."],
    "rain": ["{day} it began to rain, and {n} could not go home.", "{He} was cold and wet.",
             '{Friend} named {m} saw {him} and said, "Come in and sit by the fire."',
             "{n} went in, and {m} gave {him} some warm soup.",
             "When the rain stopped, they walked home together.|They told stories until the rain stopped.",
             "The next day {n} brought {m} {a_thing} to say thank you."],
    "learned": ["{He} wanted to learn to {skill}.", "{day} {he} asked {friend} named {m} for help.",
                '"It is not hard," said {m}. "You only have to try again and again."',
                "{n} tried and tried. At first {he} could not do it.",
                "But {he} did not give up, and at last {he} could do it.",
                "{n} was very proud, and {m} gave {him} {a_thing}."],
}
BEGIN = "Once upon a time there was {hero} named {n}.|There once was {hero} called {n}.|{n} was {hero}."
HOME = "{He} lived in {home} near {place}.|{n} lived in {home} and liked to play near {place}."
END = "The end.|The end.|And they were happy."


def a(what):
    return ("an " if what[0] in "aeiouAEIO" else "a ") + what


def story(r, animal=None):
    animal = animal or r.choice(list(HOMES))
    n, m = r.sample(list(NAMES), 2)
    t = r.choice(list(THINGS))
    thing = r.choice([THINGS[t], "new", "big"]) + " " + t
    he, friend = NAMES[n], a(r.choice([x for x in HOMES if x != animal]))
    fields = {
        "n": n, "m": m, "he": he, "He": he.capitalize(), "his": "his" if he == "he" else "her",
        "him": "him" if he == "he" else "her", "hero": a(r.choice(KINDS) + " " + animal), "home": a(HOMES[animal]),
        "friend": friend, "Friend": friend.capitalize(), "t": t, "thing": thing, "a_thing": a(thing),
        "place": r.choice(PLACES), "day": r.choice(DAYS), "skill": r.choice(SKILLS)}
    lines = [BEGIN, HOME] + PLOTS[r.choice(list(PLOTS))] + [END]
    return " ".join(r.choice(line.split("|")).format(**fields) for line in lines)
