"""What people say, in ten languages: sentences for a database that looks like one that was talked in.

Words stand by falling frequency and are drawn by Zipf's law; behind each language's own few stands a long tail of names and
rarer words, made of syllables. Rule: the same seed gives the same words, so a database that was kept can be asked for them again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from loadtest.search import Language, language

SEED: Final = 1865
# (weight, what stands between words, words)
_LANGUAGES: Final = (
    (30, " ", "the you I to a it and is that in of we for on have what not can be will do see at with okay today good me are this "
     "when think time there tomorrow thanks going call late home meeting photo train dinner weekend maybe station really lunch"),
    (12, " ", "ich die das ist nicht du und es wir in der zu ja was so mal noch auch auf mit dann heute morgen gut haben kommt wann "
     "danke schön Grüße später Bahnhof Essen vielleicht natürlich Straße über"),
    (10, " ", "que de no a la el es y en lo un por qué me una te los se con para mi está si bien pero sí mañana gracias dónde "
     "estación comida luego también año"),
    (8, " ", "je de est pas le vous la tu que un il et à a ne les ça on ce en oui demain merci où gare déjeuner peut-être déjà élève"),
    (10, " ", "я не что в и ты это на с он как у мы все да меня так но завтра спасибо где вокзал обед потом сегодня хорошо"),
    (6, " ", "que não o de a é você e eu um para se me uma está com do por mas amanhã obrigado estação almoço então coração"),
    (10, "", "的 我 你 是 了 不 在 他 有 这 个 好 吗 就 明天 今天 谢谢 车站 吃饭 什么 时候 我们 一起 现在 回家 可以 朋友"),
    (6, "", "は の に を た が で て と し れ さ 明日 今日 ありがとう 駅 昼ごはん です ます 一緒 いま 帰る 友達 写真"),
    (4, " ", "나 너 이 그 는 가 을 오늘 내일 고마워 어디 역 점심 같이 지금 집 친구 사진 괜찮아 아니"),
    (4, " ", "في من على أن لا هذا ما أنت أنا غدا اليوم شكرا أين محطة غداء معا الآن البيت صديق صورة"),
)  # fmt: skip
_TAIL_SHARE: Final = 0.12


@dataclass(frozen=True, slots=True)
class Phrases:
    """Sentences, and words to look for in them; `spoken` has those that are rare (said now and then) and absent (never)."""

    sentences: list[str]
    common: list[str]
    spoken: Language


def phrases(count: int) -> Phrases:
    """That many sentences of 2 to 14 words."""
    chance = random.Random(SEED)
    spoken = language(chance)
    tongues = [(between, words.split()) for _, between, words in _LANGUAGES]
    weighed = [(between, words, _zipf(len(words))) for between, words in tongues]
    shares = list(accumulate(share for share, _, _ in _LANGUAGES))
    picked = chance.choices(weighed, cum_weights=shares, k=count)
    sentences = [_sentence(chance, spoken, *tongue) for tongue in picked]
    return Phrases(sentences, [word for _, words in tongues for word in words if len(word) > 2][:80], spoken)


def _sentence(chance: random.Random, spoken: Language, between: str, words: list[str], weights: list[float]) -> str:
    said = chance.choices(words, cum_weights=weights, k=chance.randint(2, 14))
    tail = chance.choices(spoken.words, cum_weights=spoken.word_weights, k=len(said))
    return between.join(rare if chance.random() < _TAIL_SHARE else word for word, rare in zip(said, tail, strict=True))


def _zipf(words: int) -> list[float]:
    return list(accumulate(1 / (rank + 2) for rank in range(words)))
