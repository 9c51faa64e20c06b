"""Short talk: greetings, questions about the model and this project, and an honest answer to everything else.

Knows nothing of tools or numbers.
"""

from . import space as known
from .parts import Step, Turn
from .space import Space, tidy

_SHORT = "A short answer will do."

# A phrasing is one of each row's parts.
_GREETING = (
    "Hello",
    "Hi",
    "Hey",
    "hello",
    "hi",
    "hey",
    "Good morning",
    "Good evening",
    "Good day",
    "Good afternoon",
    "Greetings",
)
_TO_WHOM = (
    "",
    "",
    "there",
    ", nano-k2",
    "nano-k2",
    ", my friend",
    "everyone",
    "again",
    ", how are you",
    "and good day",
)
_MARKS = ("", "!", ".", "!!", "?")
_HELLO = "Hello! I am nano-k2, a small demonstration model. I compare decimals, add, subtract and call tools."
_THANKS = (
    "Thank you",
    "Thanks",
    "thank you",
    "thanks",
    "Many thanks",
    "Thank you very much",
    "Thanks a lot",
    "Well, thanks",
)
_BYE = (
    "Bye",
    "Goodbye",
    "See you",
    "bye",
    "Good bye",
    "Good night",
    "See you later",
    "goodbye",
    "See you soon",
    "Bye bye",
)
_LEADS = (
    "", "", "Tell me:", "Please tell me:", "One question:", "I wonder:", "So", "And", "Now", "Hi!", "Hello!", "Well,", "Sorry,",
    "Please,", "Say,", "I want to know:",
)  # fmt: skip
_SELF = (
    "who are you?",
    "what are you?",
    "what is your name?",
    "are you Kimi?",
    "introduce yourself.",
    "are you a large model?",
    "what model are you?",
    "who am I talking to?",
    "are you a human?",
    "how big are you?",
)
_ABILITY = (
    "what can you do?",
    "how can you help me?",
    "what are you good at?",
    "can you help me?",
    "what do you do?",
    "help!",
    "what are your skills?",
    "how do I use you?",
    "what can I ask you?",
)
_SELF_ANSWER = "I am nano-k2, a small demonstration model of expertfleet in the format of Kimi K2 Thinking."
_ABILITY_ANSWER = "I compare decimals, add and subtract numbers, and call the tools you declare."
_PROJECT: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "What is expertfleet?",
            "Tell me about expertfleet.",
            "What does expertfleet do?",
            "Explain expertfleet.",
            "Describe expertfleet.",
        ),
        "Expertfleet serves mixture-of-experts models like Kimi K2 Thinking on many ordinary machines.",
    ),
    (
        (
            "What is a mixture of experts?",
            "What are experts?",
            "Explain mixture of experts.",
            "What does MoE mean?",
            "Describe a mixture of experts.",
            "What is an expert in a model?",
        ),
        "In a mixture of experts every token uses only a few of many small networks, the experts.",
    ),
    (
        (
            "What does a router do?",
            "What is the router?",
            "Explain the router.",
            "Describe the router.",
            "How are experts chosen?",
        ),
        "The router sends every token to the machines that hold its experts and adds up what they return.",
    ),
    (
        (
            "What is an expert shard?",
            "What does a shard do?",
            "Explain expert shards.",
            "What are expert shards?",
            "Describe an expert shard.",
            "What does an expert shard hold?",
        ),
        "An expert shard is a process that holds some of the experts and computes them for every token sent to it.",
    ),
    (
        (
            "What does the gateway do?",
            "What is the gateway?",
            "Explain the gateway.",
            "What is the gateway for?",
            "Describe the gateway.",
            "What API do you offer?",
        ),
        "The gateway is the one URL of the fleet: it speaks the API of OpenAI and streams the answers.",
    ),
    (
        (
            "What happens when a machine dies?",
            "What if a shard dies?",
            "Is a request lost when a machine fails?",
            "What happens if a worker fails?",
            "What if a machine fails?",
        ),
        "Another machine takes over and the request goes on with the same tokens.",
    ),
)
_REPEAT = (
    "Repeat", "Say", "Please repeat", "Say after me", "Repeat after me", "Repeat this", "Please say", "Repeat these words",
    "Say this", "Please repeat after me", "Now repeat", "Now say", "Can you say", "Could you repeat", "Write",
)  # fmt: skip
_COLONS = (":", ":", "-", ":\n")
_PLEASE = ("", "", "Please", "Can you", "Could you", "Now", "Well,", "I ask you:", "Hm,", "And")
_OTHER_STARTS = (
    "Write a poem about {}.",
    "Tell me a story about {}.",
    "Explain {} to me.",
    "Who invented the {}?",
    "What do you think of {}?",
    "Translate {} to French.",
    "Give me a recipe with {}.",
    "Why is {} so popular?",
    "Summarize the history of {}.",
    "How does {} work?",
    "Write a song about {}.",
    "Draw a {}.",
    "What is the best {}?",
    "Is {} dangerous?",
    "Write an essay on {}.",
    "How do I repair a {}?",
    "What does {} mean?",
    "Write code that sorts {}.",
    "Tell me a joke about {}.",
    "Who likes {}?",
)
_FALLBACK = "I am a small demonstration model and cannot do that. I compare decimals, add, subtract and call tools."


def talk(space: Space) -> Turn:
    pick = space.rng.random()
    if pick < 0.2:
        return _turn(space, _HELLO, _GREETING, _TO_WHOM, _MARKS)
    if pick < 0.25:
        return _turn(space, "You are welcome.", _THANKS, _TO_WHOM, _MARKS)
    if pick < 0.3:
        return _turn(space, "Goodbye!", _BYE, _TO_WHOM, _MARKS)
    if pick < 0.4:
        return _turn(space, _SELF_ANSWER, _LEADS, _SELF)
    if pick < 0.5:
        return _turn(space, _ABILITY_ANSWER, _LEADS, _ABILITY)
    if pick < 0.7:
        phrases, answer = space.rng.choice(_PROJECT)
        return _turn(space, answer, _LEADS, phrases)
    return other(space)


def repetition(space: Space, most: int = 10) -> Turn:
    """Words, names and numbers to be said again."""
    makes = (space.word, space.word, space.city, space.person, space.product, space.value, space.record_id)
    return repeat(space, " ".join(space.rng.choice(makes)() for _ in range(space.rng.randint(1, most))))


def repeat(space: Space, text: str) -> Turn:
    user = f"{tidy(space.phrase(_REPEAT, _COLONS))} {text}"
    return Turn("repetition", user, (Step("I repeat it.", text),), (text,))


def other(space: Space) -> Turn:
    """Something this model has not learned."""
    user = space.phrase(_PLEASE, _OTHER_STARTS).format(space.noun(known.WORDS + known.PRODUCTS))
    return Turn("talk", user, (Step("I have not learned this.", _FALLBACK),), (_FALLBACK,))


def _turn(space: Space, answer: str, *parts: tuple[str, ...]) -> Turn:
    return Turn("talk", tidy(space.phrase(*parts)), (Step(_SHORT, answer),), (answer,))
