"""One request with all its attempts, as steps that blocking and asyncio code can take."""

from __future__ import annotations

import logging
from collections.abc import Generator
from typing import NamedTuple, TypeAlias

from langgraph_aurora_store.embeddings.models import Model
from langgraph_aurora_store.embeddings.options import Options
from langgraph_aurora_store.embeddings.requests import (
    InputText,
    Request,
    RequestResult,
    validate_vectors,
)
from langgraph_aurora_store.embeddings.retry import Clock, Failure, RateLimitedWarning, RetryBudget
from langgraph_aurora_store.embeddings.text_lengths import largest_token_count
from langgraph_aurora_store.errors import AuroraStoreError, EmbeddingResponseError

# Applications filter by the name of 0.1.0.
logger = logging.getLogger("langgraph_aurora_store.embeddings.exchange")

# A text refused as too long, with no numbers to go by, is cut to this share and tried again.
BLIND_SHARE = 0.7
# Where the service did say how much would fit, a little less: its tokens are no characters.
MARGIN = 0.97
SHORTEST_CUT = 16


class Send(NamedTuple):
    """Send this request; reply with the service's decoded answer or with a `Failed`."""

    request: Request


class Failed(NamedTuple):
    """A request's failed attempt: the class of the SDK's exception, and what it means."""

    kind: str
    failure: Failure


class Delay(NamedTuple):
    """Let this many seconds pass; the reply is ignored."""

    seconds: float


Steps: TypeAlias = Generator[Send | Delay, object, RequestResult]


class RequestFlow(NamedTuple):
    """How requests to one service go: what is retried, shortened, checked and given up.

    ``warnings`` keeps an outage of many requests from filling the log.
    """

    model: Model
    options: Options
    clock: Clock
    warnings: RateLimitedWarning

    def steps(self, request: Request) -> Steps:
        """The request until it is answered; raises `EmbeddingError` when it will not be."""
        budget = RetryBudget(self.clock, self.options.deadline_s)
        while True:
            reply = yield Send(request)
            if not isinstance(reply, Failed):
                return RequestResult(
                    self._vectors(reply, request), self._texts_used(reply, request)
                )
            failure = reply.failure
            if failure.too_long and self.options.truncate == "warn":
                return (yield from self._with_less_text(request, failure))
            delay = budget.delay_after(failure)
            if delay is None:
                raise self._final_error(failure, budget, request) from failure.error.__cause__
            self._log_retry(reply, budget, delay)
            yield Delay(delay)

    def _log_retry(self, failed: Failed, budget: RetryBudget, delay_s: float) -> None:
        """Log a failed attempt: a warning at a request's first, which is not to flood the log."""
        model = self.model.id
        if budget.attempts == 1 and self.warnings.is_due():
            code = failed.failure.code
            kind = f"{failed.kind}: {code}" if code else failed.kind
            logger.warning(
                "%s: a request failed (%s) and is tried again; %.1f s are left of deadline_s=%g",
                model,
                kind,
                budget.left_s,
                self.options.deadline_s,
            )
        logger.debug("%s: attempt %d failed, next in %.2f s", model, budget.attempts, delay_s)

    def _with_less_text(self, request: Request, failure: Failure) -> Steps:
        """The request again, with less of the text the service found too long."""
        if len(request.texts) > 1:
            return (yield from self._split(request, failure))
        [text] = request.texts
        share = MARGIN * min(failure.fits, 1.0) if failure.fits else BLIND_SHARE
        length = int(len(text.content) * share)
        if length < SHORTEST_CUT:
            raise failure.error
        return (yield from self.steps(request._replace(texts=(text.cut_to(length),))))

    def _split(self, request: Request, failure: Failure) -> Steps:
        """The request in parts, each text that may be the long one alone."""
        positions = range(len(request.texts))
        long = [position for position in positions if self._may_be_long(request.texts[position])]
        parts = [
            [position for position in positions if position not in long],
            *([position] for position in long),
        ]
        if not long:
            raise failure.error
        vectors: dict[int, list[float]] = {}
        texts = dict(enumerate(request.texts))
        for part in filter(None, parts):
            smaller = request._replace(texts=tuple(request.texts[position] for position in part))
            answer = yield from self.steps(smaller)
            vectors.update(zip(part, answer.vectors, strict=True))
            texts.update(zip(part, answer.texts, strict=True))
        return RequestResult([vectors[position] for position in positions], tuple(texts.values()))

    def _may_be_long(self, text: InputText) -> bool:
        wire_format = self.model.wire_format
        limit = wire_format.max_tokens or wire_format.max_chars or 0
        return largest_token_count(text.content, wire_format) >= limit

    def _texts_used(self, answer: object, request: Request) -> tuple[InputText, ...]:
        """The request's texts, cut where the service says that it cut one itself."""
        length = self.model.wire_format.used(answer)
        return tuple(text.cut_to(length) for text in request.texts) if length else request.texts

    def _vectors(self, answer: object, request: Request) -> list[list[float]]:
        try:
            vectors = self.model.wire_format.read(answer)
        except LookupError as error:
            raise EmbeddingResponseError(
                f"{self.model.id} answered without vectors: there is nothing at {error.args[0]}"
            ) from None
        return validate_vectors(vectors, request, self.model)

    def _final_error(
        self, failure: Failure, budget: RetryBudget, request: Request
    ) -> AuroraStoreError:
        if failure.too_long and len(request.texts) == 1:
            return type(failure.error)(f"{request.texts[0].label}: {failure.error}")
        if not failure.transient:
            return failure.error
        remedy = f". {failure.remedy}" if failure.remedy else ""
        final = type(failure.error)(
            f"{failure.error}; gave up after {budget.attempts} attempt(s) in "
            f"{budget.elapsed_s:.1f} s (deadline_s={self.options.deadline_s:g})"
            f"{_asked_wait(failure, budget)}{remedy}"
        )
        final.__dict__.update(failure.error.__dict__)
        return final


def _asked_wait(failure: Failure, budget: RetryBudget) -> str:
    """What the service asked for, where that is why there was no further attempt."""
    wait_s = failure.retry_after_s
    if wait_s is None or wait_s < budget.left_s:
        return ""
    return f": the service asks to wait {wait_s:g} s, and {budget.left_s:.1f} s were left"
