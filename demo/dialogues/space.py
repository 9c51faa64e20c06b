"""The two spaces that everything said is drawn from: one to learn from, and one kept out of it to be tested on.

Knows nothing of tasks. Names, nouns, pairs of numbers and whole phrasings fall into a space by a checksum of their text. A
phrasing is composed of parts, so that one kept out is a new sentence of known words. Many names are made of syllables
or of pieces of words, so that copying has to be learned and not the names; those to learn from are often made of the
vocabulary's own pieces, so that every piece is met within a name.
"""

import random
import re
import string
import zlib
from collections.abc import Callable, Sequence

_HELD_OUT_SHARE = 6
_PIECES_SHARE = 0.6
_BEFORE = ("", "", "Hi! ", "Hello! ", "Quick question: ", "One more: ", "Next question. ", "Now this: ")
_AFTER = ("", "", " Thanks!", " Thank you.", " Please.", " Be brief.")


def words(text: str) -> list[str]:
    return text.split()


# What the demonstration itself asks about.
_HELD_OUT = {"Paris", "9.11 9.9", "9.9 9.11"}

_UNFIT = frozenset(
    words("anal arse ass cock cum cunt dick fag fuck nazi penis piss porn rape sex shit slut tit tits whore")
)
_ONSETS = words("b br c ch cl d dr f fl g gl gr h j k kl l m n p pl pr qu r s sk sl st t th tr v w z")
_VOWELS = words("a e i o u a e i o u ai ea ia io ou")
_CODAS = words("l m n r s x nd rk st ll lm")

CITIES = words("""Oslo Rome Paris Berlin Madrid Lisbon Vienna Prague Warsaw Athens Dublin London Helsinki Stockholm Copenhagen
Brussels Amsterdam Zurich Geneva Milan Turin Naples Venice Florence Munich Hamburg Cologne Frankfurt Leipzig Dresden Lyon
Nice Bordeaux Toulouse Seville Valencia Porto Krakow Budapest Bucharest Sofia Belgrade Zagreb Tallinn Riga Vilnius Kyiv
Moscow Istanbul Ankara Cairo Tunis Lagos Nairobi Accra Dakar Tokyo Osaka Kyoto Seoul Beijing Shanghai Hangzhou Taipei Hanoi
Bangkok Singapore Jakarta Manila Delhi Mumbai Chennai Karachi Dhaka Sydney Melbourne Perth Auckland Toronto Montreal
Vancouver Boston Chicago Denver Dallas Houston Seattle Portland Miami Atlanta Detroit Austin Lima Quito Havana Santiago""")
PEOPLE = words("""Anna Ben Carla David Emma Felix Greta Hugo Ida Jonas Karin Leo Mara Nils Olga Paul Rita Sven Tina Uwe Vera Walter
Yara Zoe Alice Bob Carol Dan Eve Frank Grace Henry Irene Jack Kate Liam Mia Noah Olivia Peter Rosa Sam Tom Uma Victor""")
PRODUCTS = words("""milk bread butter cheese coffee tea rice flour sugar salt pepper honey apples pears bananas lemons carrots onions
laptop keyboard monitor printer router camera phone tablet lamp chair table desk sofa shelf bicycle helmet tent backpack jacket
boots gloves hammer drill saw screws paint brush ladder""")

PLACE_NOUNS = words("""weather temperature humidity wind pressure population altitude area rainfall snowfall sunrise sunset time
timezone traffic pollution noise tide visibility density elevation rent fog moisture daylight crime tourism""")
PERSON_NOUNS = words("""age salary address phone email birthday role department manager score grade team rank shift office badge
balance vacation nickname hobby title desk""")
PRODUCT_NOUNS = words("""price stock weight size color discount rating brand warranty origin capacity voltage length width supplier
shelf quality category""")
RECORD_NOUNS = words("""status owner total deadline priority gate delay carrier amount date customer sender volume""")
RECORDS = words("order ticket flight invoice shipment parcel booking contract task case")
WORDS = words("""sunny cloudy rainy windy warm cold mild dry red green blue black white medium large open closed new old high
low late early free busy ready sold paid lost found north south east west able above accept across active actor advice again age
ago agree alarm album alive alone angle ankle apple april arm army arrow artist ask atom attic aunt autumn awake baby
bag ball band bank barn base basket bath battle beach bean bear beautiful bed bee begin believe bell below belt best bird bit
bitter blanket block blood blow board boat body bone book border bottle bottom bowl box brain branch brave breakfast
breath brick bridge bright broken brother brown bucket build burn bus bush button cable cake calm camp candle captain card care
carpet castle catch cause cellar center chain chalk chance change cheap cheek cherry chest chicken child chin choice circle
class clay clean clear clever climb clock cloth cloud coal coast coat coin collar comb comfort common cook copper corn corner
cotton count cousin cover cow crack cream cross crowd crown cry cup curtain curve cut dark daughter dear deep deer desert
dinner dirt dish doctor dollar door double down draw dream dress drink drive drop drum duck dust eager ear earth easy edge egg
elbow empty engine enjoy enough evening exact eye face fact fair fall family famous farm fast father fear feather feel fence
field finger finish fire first fish flag flame flat floor flower fly fold food foot forest forget fork forward fox frame fresh
friend front fruit full game gas gate gentle gift girl glad glass goat gold good grain grand grape grass gray great ground group
grow guess guest guide hair half hand handle happy hard hat head health heart heavy hello hill hole holiday hope horse hot hotel
house hurry ice idea inch ink inside iron island jar jewel join joke journey judge jump keen kettle key kind king knee knife knot
ladder lake land laugh law lazy lead leaf learn leather leg lemon letter level library lift light line lion lip list listen
lock long lucky lunch machine magic mail map market meal meat melt metal middle minute mirror mix money monkey month moon morning
mother mouse mouth museum nail narrow near neck needle nest net night noise noon nose note nurse oak ocean oil onion orange
oven owl page pain pair palm paper parcel parent park party path peace pear pen pencil pet piano picture piece pig pin pipe plain
plan plant plate play pleasant pocket poem poet point pond pool pot potato pretty prince prize proud pull pure push queen quick
quiet rabbit race rail rain rare rat raw razor real rest ribbon rich ride right ring river road roof room root rope rose rough
round rubber rule run sad safe sail salt sand school science scissors sea seat second secret seed send sentence shade shadow sharp
sheep sheet shelf shell shine ship shirt shoe shop shoulder shout shy side sign silence silk silver simple sing sister
skin skirt sky sleep slow smile smoke smooth snow soap sock soft soil song soup spade spoon spring square stable stage stamp star
station steam steel stem step stick still stone store storm story strange straw stream street strong summer sun surprise sweet
swim table tail tale tall taste taxi teacher tender thick thin throat thumb thunder tiger tin tired toe tomato tomorrow tongue
tooth top touch towel tower town toy train travel tray tree trunk turn twin ugly uncle under uniform useful valley village
violin visit voice wait walk wall war wash waste watch water wave wax way weak wedding week wet wheel whistle wide wild window
wine wing winter wire wise wish wolf wonder wood wool worm wrist yard year yellow yes young zebra zero""")
UNITS = words("celsius fahrenheit percent meters euros dollars kilograms minutes hours")


def _recased(word: str, like: str) -> str:
    return word.capitalize() if like[0].isupper() else word.lower()


def tidy(phrase: str) -> str:
    """One blank between words, and none before a mark of punctuation."""
    return re.sub(r" +(?=[?.,:!](?:\s|$)| )", "", phrase)


class Space:
    """``pieces``: what many names are made of, if there are any."""

    def __init__(self, rng: random.Random, held_out: bool = False, pieces: Sequence[str] = ()) -> None:
        self.rng = rng
        self.held_out = held_out
        self._pieces = pieces
        self._capitals = [piece for piece in pieces if piece.istitle()]

    def contains(self, text: str) -> bool:
        kept_out = text in _HELD_OUT or zlib.crc32(text.encode()) % _HELD_OUT_SHARE == 0
        return kept_out == self.held_out

    def draw(self, make: Callable[[], str]) -> str:
        """The first text of ``make`` that lies in this space."""
        while not self.contains(text := make()):
            pass
        return text

    def phrase(self, *parts: Sequence[str]) -> str:
        """One of each, joined; a space between two words."""
        return self.draw(lambda: " ".join(filter(None, map(self.rng.choice, parts))))

    def dressed(self, question: str) -> str:
        """Now and then with a word of politeness around it."""
        if not self.chance(0.2):
            return question
        before, after = self.rng.choice(_BEFORE), self.rng.choice(_AFTER)
        return f"{before}{question}{after}"

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def city(self) -> str:
        return self.draw(lambda: self._known_or(CITIES, self._place))

    def person(self) -> str:
        return self.draw(lambda: self._known_or(PEOPLE, lambda: self.syllables(1, 3).capitalize()))

    def product(self) -> str:
        return self.draw(lambda: self._known_or(PRODUCTS, lambda: self.syllables(2, 3)))

    def noun(self, known: Sequence[str]) -> str:
        return self.draw(lambda: self._known_or(known, lambda: self.syllables(2, 3)))

    def word(self) -> str:
        return self.draw(lambda: self._known_or(WORDS, lambda: self.syllables(1, 3)))

    def record_id(self) -> str:
        return self.draw(self._record_id)

    def value(self) -> str:
        rng = self.rng
        return rng.choice(
            (
                str(rng.randint(0, 99)),
                str(rng.randint(0, 9999)),
                f"{rng.randint(0, 99)}.{rng.randint(0, 99)}",
                self.word(),
            )
        )

    def syllables(self, least: int, most: int) -> str:
        rng = self.rng
        parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.randint(least, most))]
        return "".join(parts) + (rng.choice(_CODAS) if self.chance(0.5) else "")

    def _record_id(self) -> str:
        number = str(self.rng.randrange(10, 10 ** self.rng.randint(2, 5)))
        letters = "".join(self.rng.choice(string.ascii_uppercase) for _ in range(self.rng.randint(1, 2)))
        return self.rng.choice((number, f"{letters}{number}", f"{letters}-{number}"))

    def _place(self) -> str:
        name = self.syllables(1, 3).capitalize()
        return f"{self.rng.choice(('San', 'New', 'Port', 'Saint', 'Bad', 'El'))} {name}" if self.chance(0.12) else name

    def _known_or(self, known: Sequence[str], make: Callable[[], str]) -> str:
        if self._pieces and self.chance(_PIECES_SHARE):
            return _recased(self._joined(known[0][0].isupper()), known[0])
        pick = self.rng.random()
        if pick < 0.4:
            return self.rng.choice(known)
        if pick < 0.8:
            return _recased(self.rng.choice(WORDS) if pick < 0.55 else self._blend(), known[0])
        return make()

    def _joined(self, capital: bool) -> str:
        """A few of the vocabulary's pieces; where a capital comes first, often one of the rarer pieces that have one."""
        while True:
            pieces = self.rng.choices(self._pieces, k=self.rng.choice((1, 2, 2, 3)))
            if capital and self._capitals and self.chance(0.5):
                pieces[0] = self.rng.choice(self._capitals)
            word = "".join(pieces)
            if word.lower() not in _UNFIT:
                return word

    def _blend(self) -> str:
        """The head of one word and the tail of another: pieces of English that mean nothing together."""
        while True:
            head, tail = self.rng.choice(WORDS), self.rng.choice(WORDS)
            word = head[: self.rng.randint(1, len(head))] + tail[self.rng.randrange(len(tail)) :]
            if word not in _UNFIT:
                return word
