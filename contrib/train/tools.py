# SPDX-License-Identifier: Apache-2.0
"""Gemma 4's tool calls: what the model is told of a tool, how it calls one, what it makes of the result."""
from phrases import UNKNOWN

QUOTE = '<|"|>'
PATHS = ("/etc/hostname", "/etc/fstab", "/home/anna/list.txt", "notes.txt", "/var/log/syslog", "README.md", "/etc/hosts",
         "todo.txt", "/tmp/out.txt", "report.md", "/home/tom/plan.txt", "data.csv")
PLACES = ("/home", "/", "/var", "/tmp", "/srv", "/boot", "/usr", "/mnt", "/opt", "/data")
SERVICES = ("nginx", "ssh", "cron", "apache2", "docker", "postgresql", "moed", "bluetooth", "cups", "mariadb")
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "clear")
LINES = ("buy milk and bread", "call Anna", "debian", "127.0.0.1 localhost", "the meeting is on Monday", "nothing to see here",
         "one two three", "version 2", "hello world", "water the plants")


class Tool:
    """@ask: questions; @fields: what they are about and the arguments; @result: the answer's fields."""

    def __init__(self, name, what, parameters, ask, fields, result, say):
        self.name, self.what, self.parameters = name, what, parameters
        self.ask, self.fields, self.result, self.say = ask.split("|"), fields, result, say

    def declaration(self):
        properties = ",".join(
            f"{key}:{{description:{value(what)},type:{value(kind)}}}"
            for key, (what, kind) in sorted(self.parameters.items()))
        required = ",".join(value(key) for key in sorted(self.parameters))
        return (f"<|tool>declaration:{self.name}{{description:{value(self.what)},parameters:{{properties:{{{properties}}},"
                f"required:[{required}],type:{value('OBJECT')}}}}}<tool|>")


def value(v):
    if isinstance(v, bool):
        return "true" if v else "false"
    return f"{QUOTE}{v}{QUOTE}" if isinstance(v, str) else str(v)


def mapping(fields):
    return "{" + ",".join(f"{key}:{value(fields[key])}" for key in sorted(fields)) + "}"


def tools(cities):
    return [
        Tool("get_weather", "The weather of a city", {"city": ("Name of the city", "STRING")},
             "What is the weather in {city}?|How is the weather in {city}?|Is it cold in {city}?|Weather in {city}"
             "|Tell me the weather in {city}.|what is the weather like in {city}|Does it rain in {city}?"
             "|Is it warm in {city} today?|Do I need a coat in {city}?|I want to know the weather in {city}.",
             lambda r: {"city": r.choice(cities)},
             lambda r, f: {"sky": r.choice(SKIES), "degrees": r.randint(-9, 35)},
             "It is {sky} in {city}, {degrees} degrees."),
        Tool("get_time", "The time in a city", {"city": ("Name of the city", "STRING")},
             "What time is it in {city}?|What is the time in {city}?|Time in {city}|how late is it in {city}"
             "|Tell me the time in {city}.|Is it night in {city}?|Which time is it in {city} now?"
             "|I want to call somebody in {city}. What time is it there?|Give me the time in {city}."
             "|Do you know what time it is in {city}?",
             lambda r: {"city": r.choice(cities)},
             lambda r, f: {"time": f"{r.randint(0, 23):02}:{r.randint(0, 59):02}"}, "It is {time} in {city}."),
        Tool("read_file", "Read a text file", {"path": ("Path of the file", "STRING")},
             "What is in {path}?|Read {path}.|Show me {path}.|Read the file {path}.|what does {path} say"
             "|Open {path} and tell me what it says.|Tell me what is in the file {path}.|Please read {path}."
             "|What are the contents of {path}?|Look into {path}.",
             lambda r: {"path": r.choice(PATHS)}, lambda r, f: {"text": r.choice(LINES)}, "The file {path} says: {text}"),
        Tool("disk_free", "Free space of a file system", {"path": ("A directory of it", "STRING")},
             "How much space is free on {path}?|Is {path} full?|Free space of {path}|how full is {path}"
             "|How much room is left on {path}?|Tell me how much space {path} has.|Is there space on {path}?"
             "|How many bytes are free on {path}?|Check the free space of {path}.|Do I have space on {path}?",
             lambda r: {"path": r.choice(PLACES)}, lambda r, f: {"free": f"{r.randint(1, 900)} {r.choice(('MB', 'GB'))}"},
             "{free} are free on {path}."),
        Tool("service_status", "State of a service", {"name": ("Name of the service", "STRING")},
             "Is {name} running?|What is the state of {name}?|Status of {name}|is the service {name} up|Does {name} run?"
             "|Check {name}.|Tell me if {name} is running.|Is the service {name} active?|How is {name} doing?"
             "|Did {name} fail?",
             lambda r: {"name": r.choice(SERVICES)},
             lambda r, f: {"state": r.choice(("active", "inactive", "failed"))}, "The service {name} is {state}."),
        Tool("add", "Add two numbers", {"a": ("First number", "INTEGER"), "b": ("Second number", "INTEGER")},
             "What is {a} + {b}?|Add {a} and {b}.|{a} plus {b}|What is the sum of {a} and {b}?|how much is {a} + {b}"
             "|Calculate {a} + {b}.|Compute {a} plus {b}.|Tell me what {a} plus {b} is.|Sum up {a} and {b}."
             "|I have {a} and get {b} more. How many do I have?",
             lambda r: {"a": r.randint(11, 999), "b": r.randint(11, 999)}, lambda r, f: {"value": f["a"] + f["b"]},
             "{a} + {b} = {value}"),
        Tool("set_timer", "Ring after some minutes", {"minutes": ("How many", "INTEGER")},
             "Set a timer for {minutes} minutes.|Remind me in {minutes} minutes.|Wake me in {minutes} minutes."
             "|timer {minutes} minutes|Ring in {minutes} minutes.|Start a timer of {minutes} minutes."
             "|I need a timer for {minutes} minutes.|Please set a timer to {minutes} minutes."
             "|Tell me when {minutes} minutes are over.|Let me know in {minutes} minutes.",
             lambda r: {"minutes": r.randint(1, 90)}, lambda r, f: {"set": True}, "The timer is set to {minutes} minutes."),
    ]


def exchange(r, tool, declared):
    """Segments of one question about @tool and its answer, as talk.py has them."""
    fields = tool.fields(r)
    ask = r.choice(tool.ask).format(**fields)
    if not declared:
        return ask, [(UNKNOWN + "<turn|>", True)]
    result = tool.result(r, fields)
    return ask, [
        (f"<|tool_call>call:{tool.name}{mapping(fields)}<tool_call|><|tool_response>", True),
        (f"response:{tool.name}{mapping(result)}<tool_response|>", None),
        (tool.say.format(**fields, **result) + "<turn|>", True)]
