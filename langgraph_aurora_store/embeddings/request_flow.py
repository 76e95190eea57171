"""One request with all its attempts, as steps that a blocking and an asyncio driver can take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeAlias

from langgraph_aurora_store.embeddings.models import Model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.requests import (
    Answer,
    Request,
    Text,
    checked,
    largest_token_count,
)
from langgraph_aurora_store.embeddings.retry import Clock, Failure, RateLimitedWarning, RetryBudget
from langgraph_aurora_store.errors import AuroraStoreError, EmbeddingResponseError

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.embeddings.exchange")

# A text refused as too long, with no numbers to go by, is cut to this share and tried again.
BLIND_SHARE = 0.7
# Where the service did say how much would fit, a little less: its tokens are no characters.
MARGIN = 0.97
SHORTEST_CUT = 16


class Send(NamedTuple):
    """Send this request; reply with the service's decoded answer or the SDK's exception."""

    request: Request


class Delay(NamedTuple):
    """Let this many seconds pass; the reply is ignored."""

    seconds: float


Steps: TypeAlias = Generator[Send | Delay, object, Answer]


class RequestFlow(NamedTuple):
    """How requests to one service go: what is retried, shortened, checked and given up.

    ``explain`` turns an exception of the SDK into what it means. ``warnings`` keeps
    an outage of many requests from filling the log.
    """

    model: Model
    options: Options
    clock: Clock
    explain: Callable[[Exception, Request], Failure]
    warnings: RateLimitedWarning

    def steps(self, request: Request) -> Steps:
        """The request until it is answered; raises `EmbeddingError` when it will not be."""
        backoff = RetryBudget(self.clock, self.options.deadline_s)
        while True:
            reply = yield Send(request)
            if not isinstance(reply, Exception):
                return Answer(self._vectors(reply, request), self._used(reply, request))
            fault = self.explain(reply, request)
            if fault.too_long and self.options.truncate == "warn":
                return (yield from self._shortened(request, fault))
            delay = backoff.delay_after(fault)
            if delay is None:
                raise self._final(fault, backoff, request) from fault.error.__cause__
            self._tell(reply, fault, backoff, delay)
            yield Delay(delay)

    def _tell(self, error: Exception, fault: Failure, backoff: RetryBudget, delay_s: float) -> None:
        """Log a failed attempt: a warning at a request's first, which is not to flood the log."""
        model = self.model.id
        if backoff.attempts == 1 and self.warnings.is_due():
            kind = f"{type(error).__name__}: {fault.code}" if fault.code else type(error).__name__
            logger.warning(
                "%s: a request failed (%s) and is tried again; %.1f s are left of deadline_s=%g",
                model,
                kind,
                backoff.left_s,
                self.options.deadline_s,
            )
        logger.debug("%s: attempt %d failed, next in %.2f s", model, backoff.attempts, delay_s)

    def _shortened(self, request: Request, fault: Failure) -> Steps:
        """The request again, with less of the text the service found too long."""
        if len(request.texts) > 1:
            return (yield from self._apart(request, fault))
        [text] = request.texts
        share = MARGIN * min(fault.fits, 1.0) if fault.fits else BLIND_SHARE
        length = int(len(text.content) * share)
        if length < SHORTEST_CUT:
            raise fault.error
        return (yield from self.steps(request._replace(texts=(text.cut_to(length),))))

    def _apart(self, request: Request, fault: Failure) -> Steps:
        """The request in parts, each text that may be the long one alone."""
        places = range(len(request.texts))
        long = [place for place in places if self._may_be_long(request.texts[place])]
        parts = [[place for place in places if place not in long], *([place] for place in long)]
        if not long:
            raise fault.error
        vectors: dict[int, list[float]] = {}
        texts = dict(enumerate(request.texts))
        for part in filter(None, parts):
            smaller = request._replace(texts=tuple(request.texts[place] for place in part))
            answer = yield from self.steps(smaller)
            vectors.update(zip(part, answer.vectors, strict=True))
            texts.update(zip(part, answer.texts, strict=True))
        return Answer([vectors[place] for place in places], tuple(texts.values()))

    def _may_be_long(self, text: Text) -> bool:
        family = self.model.family
        limit = family.max_tokens or family.max_chars or 0
        return largest_token_count(text.content, family) >= limit

    def _used(self, answer: object, request: Request) -> tuple[Text, ...]:
        """The request's texts, cut where the service says that it cut one itself."""
        length = self.model.family.used(answer)
        return tuple(text.cut_to(length) for text in request.texts) if length else request.texts

    def _vectors(self, answer: object, request: Request) -> list[list[float]]:
        try:
            vectors = self.model.family.read(answer)
        except LookupError as error:
            raise EmbeddingResponseError(
                f"{self.model.id} answered without vectors: there is nothing at {error.args[0]}"
            ) from None
        return checked(vectors, request, self.model)

    def _final(self, fault: Failure, backoff: RetryBudget, request: Request) -> AuroraStoreError:
        if fault.too_long and len(request.texts) == 1:
            return type(fault.error)(f"{request.texts[0].label}: {fault.error}")
        if not fault.transient:
            return fault.error
        remedy = f". {fault.remedy}" if fault.remedy else ""
        final = type(fault.error)(
            f"{fault.error}; gave up after {backoff.attempts} attempt(s) in "
            f"{backoff.elapsed_s:.1f} s (deadline_s={self.options.deadline_s:g}){remedy}"
        )
        final.__dict__.update(fault.error.__dict__)
        return final
