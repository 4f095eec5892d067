"""What happens within one visit: an intent that nobody sees, told as steps.

The next step hangs on more than the last two actions. Which intent it is shows only in the order of things:

    browse    runs of products, ``patience`` long, led by a search or not; hurried or deliberate, and only a
              deliberate run, led by a search, ends in a mark or in the cart
    compare   two or three products of one category in turn, ``looks`` rounds, then one of them
    buy       search, a run, back to one product after a long look, cart, ``lingers`` others, checkout
    gift      search, look, look, search again in categories that are not the person's own, then straight through
    resume    back after hours for what is in the cart: checkout (a fresh cart leads to more products)
    decide    back for what was wanted: slowly looked at again, then the cart; quickly, then something else
    speak     back after days for what was bought: review or return
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from models.simulator.people import Dice, Habits, Memory
from models.simulator.shop import Item, Shop

__all__ = ["Step", "visit"]

_HOUR_MS = 3_600_000
_HURRIED_S, _USUAL_S, _SLOW_S = 6.0, 16.0, 55.0
_LONGEST_PAUSE_S = 1_200.0
_STRAY = 0.1


class Step(NamedTuple):
    """One event to come: seconds since the one before, action, category's index, product (None for a search)."""

    gap_s: float
    action: str
    category: int
    item: Item | None


def visit(dice: Dice, shop: Shop, habits: Habits, memory: Memory, start_ms: int) -> Iterator[Step]:
    """The steps of one visit; changes the memory. The first gap is without meaning."""
    return _Visit(dice, shop, habits, memory, start_ms).steps()


class _Visit:
    def __init__(self, dice: Dice, shop: Shop, habits: Habits, memory: Memory, start_ms: int) -> None:
        self.dice, self.shop, self.habits, self.memory, self.start_ms = dice, shop, habits, memory, start_ms

    def steps(self) -> Iterator[Step]:
        """The intent's steps, with a stray one between them now and then."""
        for step in self.intent():
            yield step
            if self.dice.flip(_STRAY):
                yield self.stray()

    def intent(self) -> Iterator[Step]:
        dice, memory = self.dice, self.memory
        if memory.cart and self.start_ms - memory.carted_ms > _HOUR_MS and dice.flip(0.75):
            return self.resume()
        if memory.bought and self.start_ms - memory.bought_ms > 20 * _HOUR_MS and dice.flip(0.8):
            return self.speak()
        if memory.wanted and dice.flip(0.5):
            return self.decide(memory.wanted.pop())
        # Evenings are for decisions, the day is for a quick look around.
        evening = self.start_ms // _HOUR_MS % 24 >= 18
        chance = dice.chance()
        browse, compare, buy = (0.2, 0.4, 0.85) if evening else (0.45, 0.6, 0.85)
        if chance < browse:
            return self.browse()
        if chance < compare:
            return self.compare()
        return self.buy() if chance < buy else self.gift()

    # ---- intents

    def browse(self) -> Iterator[Step]:
        dice, habits = self.dice, self.habits
        category = habits.taste(dice.chance())
        while True:
            led = dice.flip(habits.searches)
            hurried = dice.flip(0.5)
            yield from self.run(category, led, habits.patience + 2 * hurried, hurried)
            if led and not hurried and dice.flip(0.75):
                item = self.product(category)
                yield from self.open(item, _SLOW_S)
                yield from self.want(item)
            if dice.flip(0.6):
                return
            category = self.next_category(category)

    def compare(self) -> Iterator[Step]:
        dice, habits = self.dice, self.habits
        category = habits.taste(dice.chance())
        yield self.search(category)
        rivals = [self.product(category) for _ in range(2 if dice.flip(0.7) else 3)]
        for _ in range(habits.looks):
            for item in rivals:
                yield self.look(item, 1.6 * _USUAL_S)
        if dice.flip(0.75):
            yield from self.want(min(rivals, key=lambda item: item.price) if dice.flip(0.7) else rivals[0])
            if self.memory.cart and dice.flip(0.5):
                yield from self.pay()
        else:
            self.memory.wanted.append(rivals[0])

    def buy(self) -> Iterator[Step]:
        dice, habits = self.dice, self.habits
        category = habits.taste(dice.chance())
        item = self.product(category)
        yield from self.run(category, True, habits.patience, False)
        yield from self.open(item, _USUAL_S)
        for _ in range(habits.looks - 1):
            yield self.look(item, _SLOW_S)
        if dice.flip(habits.wishes):
            yield self.mark(item)
        yield self.put(item)
        yield from self.linger(category)
        if dice.flip(0.7):
            yield from self.pay()

    def gift(self) -> Iterator[Step]:
        dice = self.dice
        category = self.shop.popular_category(dice.chance())
        for _ in range(dice.between(1, 3)):
            yield self.search(category)
            item = self.product(category)
            yield self.look(item, _USUAL_S)
            if dice.flip(0.6):
                yield self.look(self.product(category), _USUAL_S)
            category = self.shop.neighbours[category][0]
        if dice.flip(0.7):
            yield self.put(item)
            yield from self.pay()

    def resume(self) -> Iterator[Step]:
        dice, memory = self.dice, self.memory
        item = memory.cart[-1]
        yield self.look(item, _USUAL_S)
        if len(memory.cart) > 1 and dice.flip(0.6):
            yield self.take_out(memory.cart[0])
        if dice.flip(0.2):
            yield self.take_out(item)
        if memory.cart:
            yield from self.pay()
        if dice.flip(0.3):
            yield from self.browse()

    def decide(self, item: Item) -> Iterator[Step]:
        dice = self.dice
        yield self.look(item, _USUAL_S)
        slowly = dice.flip(0.55)
        yield self.look(item, _SLOW_S if slowly else _HURRIED_S)
        if slowly and dice.flip(0.85):
            yield self.put(item)
            yield from self.linger(item.category)
            if dice.flip(0.6):
                yield from self.pay()
        else:
            yield from self.browse()

    def speak(self) -> Iterator[Step]:
        dice, memory = self.dice, self.memory
        # What was dear is sent back sooner than it is praised, while the days for it last.
        early = self.start_ms - memory.bought_ms < 10 * 24 * _HOUR_MS
        for item in memory.bought:
            yield self.look(item, _USUAL_S)
            if dice.flip(0.7 if self.dear(item) and early else 0.08):
                yield Step(self.pause(_SLOW_S), "return", item.category, item)
            elif dice.flip(self.habits.reviews):
                yield Step(self.pause(_SLOW_S), "review", item.category, item)
        memory.bought = []
        if dice.flip(0.3):
            yield from self.browse()

    # ---- parts of them

    def run(self, category: int, led: bool, length: int, hurried: bool) -> Iterator[Step]:
        """Products of one category, one after the other."""
        if led:
            yield self.search(category)
        length += (0, 0, 0, 1, -1)[self.dice.between(0, 4)]
        for _ in range(length):
            item = self.product(category)
            yield from self.open(item, _HURRIED_S if hurried else 1.5 * _USUAL_S, hurried)
            if self.dice.flip(0.06):
                yield self.mark(item) if self.dice.flip(self.habits.wishes) else self.put(item)

    def open(self, item: Item, median_s: float, hurried: bool = False) -> Iterator[Step]:
        """A product, from the list (click, then view, but in a hurry no view) or straight."""
        if self.dice.flip(self.habits.clicks_through):
            yield Step(self.pause(median_s), "click", item.category, item)
            if hurried and self.dice.flip(0.8):
                return
            median_s = 2.0
        yield self.look(item, median_s)

    def want(self, item: Item) -> Iterator[Step]:
        """A product found good: marked, put into the cart, or, when it is too dear, only remembered."""
        dice, habits = self.dice, self.habits
        dear = self.dear(item)
        marked = dice.flip(0.9 if dear else habits.wishes)
        if marked:
            yield self.mark(item)
        if not dear and dice.flip(0.5 if marked else 0.8):
            yield self.look(item, _USUAL_S)
            yield self.put(item)

    def linger(self, category: int) -> Iterator[Step]:
        """What people look at with something in the cart: what goes with it."""
        for n in range(self.habits.lingers):
            beside = self.shop.neighbours[category][n % 2]
            item = self.product(beside)
            yield self.look(item, _USUAL_S)
            if self.dice.flip(0.3):
                yield self.put(item)

    def pay(self) -> Iterator[Step]:
        """Checkout, then the purchase, or a change of mind when it is too dear."""
        dice, memory = self.dice, self.memory
        item = memory.cart[-1]
        yield Step(self.pause(_USUAL_S), "checkout", item.category, item)
        if dice.flip(0.45 if self.dear(item) else 0.85):
            yield Step(self.pause(_SLOW_S), "purchase", item.category, item)
            memory.bought = [*memory.bought, *memory.cart][-4:]
            memory.bought_ms = self.start_ms
            memory.cart = []
        elif dice.flip(0.6):
            yield self.take_out(item)

    # ---- single steps

    def search(self, category: int) -> Step:
        return Step(self.pause(_USUAL_S), "search", category, None)

    def look(self, item: Item, median_s: float) -> Step:
        return Step(self.pause(median_s), "view", item.category, item)

    def stray(self) -> Step:
        """Something that has nothing to do with the intent."""
        category = self.shop.popular_category(self.dice.chance())
        chance = self.dice.chance()
        if chance < 0.35:
            return self.search(category)
        action = "view" if chance < 0.65 else "click" if chance < 0.85 else "favourite"
        return Step(self.pause(_USUAL_S), action, category, self.product(category))

    def mark(self, item: Item) -> Step:
        self.memory.wanted.append(item)
        del self.memory.wanted[:-5]
        return Step(self.pause(_USUAL_S), "favourite", item.category, item)

    def put(self, item: Item) -> Step:
        self.memory.cart.append(item)
        self.memory.carted_ms = self.start_ms
        if item in self.memory.wanted:
            self.memory.wanted.remove(item)
        return Step(self.pause(_USUAL_S), "cart", item.category, item)

    def take_out(self, item: Item) -> Step:
        self.memory.cart.remove(item)
        return Step(self.pause(_USUAL_S), "remove", item.category, item)

    # ---- choices

    def pause(self, median_s: float) -> float:
        if self.dice.flip(0.01):
            median_s = 400.0  # the doorbell
        return min(_LONGEST_PAUSE_S, max(0.4, self.dice.around(median_s * self.habits.pace, 0.45)))

    def product(self, category: int) -> Item:
        return self.shop.popular_item(category, self.dice.chance())

    def dear(self, item: Item) -> bool:
        return item.price > self.habits.budget * self.shop.typical_prices[item.category]

    def next_category(self, category: int) -> int:
        chance = self.dice.chance()
        if chance < 0.4:
            return category
        if chance < 0.75:
            neighbours = self.shop.neighbours[category]
            return neighbours[int(self.dice.chance() ** 2 * len(neighbours))]
        return self.habits.taste(self.dice.chance())
