"""Who calls, and whether they may: asked before a message is read, and again with each message.

Stands inside CallInterceptor, which turns what is raised here into a status.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from likewise_server.audit import Audit
from likewise_server.errors import LikewiseError, PermissionDenied, ResourceExhausted, Unauthenticated
from likewise_server.servicers.access import HEALTH, RULES, Rule
from likewise_server.servicers.context import Context
from likewise_server.servicers.interceptor import OURS, behaviour_of, remade
from likewise_server.servicers.quota import Quotas
from likewise_server.tokens import ANONYMOUS, SCOPES, Token, Tokens

HEADER = "authorization"
SCHEME = "bearer"
NEEDED = (
    "this server needs a token: make one with `likewise tokens create` where its data is, and give it as "
    "LIKEWISE_TOKEN, as Client(token=...), or in the metadata as authorization: Bearer <token>"
)
UNKNOWN = "this token is not known here: it was revoked, or is another server's; `likewise tokens create` makes one"


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call in by its token's scopes, collections and quotas; tells the audit log of writes and refusals."""

    def __init__(self, tokens: Tokens, audit: Audit) -> None:
        self._tokens = tokens
        self._audit = audit
        self._quotas = Quotas()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a method, guarded, or one that refuses without reading a message."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(HEALTH):
            return handler
        call = _Call(self._tokens, self._quotas, self._audit, details.method)
        try:
            call.enter(dict(details.invocation_metadata or ()).get(HEADER))
        except LikewiseError as error:
            # Of whatever kind the method is: the handler of a stream reads only what it asks for.
            return grpc.stream_stream_rpc_method_handler(call.refusing(error))
        return remade(handler, call.guarded(handler), call.measured(handler.request_deserializer))


class _Call:
    """One call, from the door to its line in the audit log."""

    def __init__(self, tokens: Tokens, quotas: Quotas, audit: Audit, method: str) -> None:
        self._tokens = tokens
        self._quotas = quotas
        self._audit = audit
        self._known = method in RULES
        self._rule = RULES.get(method, Rule())
        self._method = method.removeprefix(OURS)
        self._token: Token | None = None
        self._refusal: LikewiseError | None = None
        self._size = 0  # of the message read last, in bytes
        self._passed = False  # a message has
        self._about: dict[str, None] = {}  # collections, in order
        self._count = 0
        self._facts: dict[str, str] = {}  # of whoever calls

    def enter(self, header: object) -> None:
        """Raise Unauthenticated, PermissionDenied or ResourceExhausted where the caller may not come in."""
        if not self._known:
            self._refuse(PermissionDenied(f"no rule says who may call {self._method}, so nobody may"))
        if not self._tokens.required():
            return
        if header is None:
            self._refuse(Unauthenticated(NEEDED))
        scheme, _, text = str(header).partition(" ")
        self._token = self._tokens.find(text.strip()) if scheme.lower() == SCHEME else None
        if self._token is None:
            self._refuse(Unauthenticated(UNKNOWN))
        self._stay()
        self._come_in()

    def refusing(self, error: LikewiseError) -> Callable[[Any, Context], AsyncIterator[Any]]:
        """Return a behaviour that raises the error, whatever is sent."""

        def refuse(_requests: Any, context: Context) -> AsyncIterator[Any]:
            self._meet(context)
            self._record(error)
            return _Raising(error)

        return refuse

    def measured(self, deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        """Return the deserializer, noting the size of what it reads where that counts: ByteSize() would copy it."""
        if self._token is None or self._token.bytes_per_s is None:
            return deserializer

        def read(data: bytes) -> Any:
            self._size = len(data)
            return deserializer(data)

        return read

    def guarded(self, handler: Any) -> Callable[..., Any]:
        """Return the handler's behaviour, checking each message that goes in and looking at each that comes out."""
        behaviour = behaviour_of(handler)
        taken = self._each if handler.request_streaming else self._one

        async def unary(request: Any, context: Context) -> Any:
            self._meet(context)
            try:
                reply = await behaviour(taken(request), context)
                self._look(reply)
            except BaseException as error:  # every way out is recorded
                self._fail(error)
                raise
            self._record(None)
            return reply

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            self._meet(context)
            try:
                async for reply in behaviour(taken(request), context):
                    self._stay()
                    self._look(reply)
                    yield reply
            except BaseException as error:
                self._fail(error)
                raise
            self._record(None)

        return stream if handler.response_streaming else unary

    def _one(self, request: Any) -> Any:
        self._check(request)
        self._come_in()
        self._pass()
        return request

    async def _each(self, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            self._check(request)
            if not self._passed:
                self._come_in()
            # Later messages wait for their turn: an upload that had to begin anew would never get through.
            while wait := self._wait()[0]:
                await asyncio.sleep(wait)
                self._stay()
            self._pass()
            yield request

    def _stay(self) -> None:
        """Refuse where the call may not go on: its token was revoked or changed, or tokens are required since."""
        if self._token is None:
            if self._tokens.required():
                self._refuse(Unauthenticated(NEEDED))
            return
        token = self._tokens.get(self._token.id)
        if token is None:
            self._refuse(Unauthenticated(UNKNOWN))
        self._token = token
        if self._rule.scopes and self._rule.scopes.isdisjoint(token.scopes):
            needed = " or ".join(scope for scope in SCOPES if scope in self._rule.scopes)
            has = ", ".join(token.scopes)
            self._refuse(
                PermissionDenied(
                    f"{self._method} needs the scope {needed}, and token {token.name!r} has {has}: "
                    "use another, or make one with `likewise tokens create NAME --scope ...`"
                )
            )

    def _check(self, request: Any) -> None:
        """Refuse a message that names collections which are not the token's."""
        self._stay()
        if not self._rule.collections:
            return
        names = self._rule.named(request)
        token = self._token
        if token is not None and token.collections:
            limited = f"token {token.name!r} is limited to the collections {', '.join(token.collections)}"
            if not names and self._rule.empty_is_all:
                self._refuse(PermissionDenied(f"{limited}: name one of them"))
            for name in names:
                if not token.may_name(name):
                    self._refuse(PermissionDenied(f"{limited}, and {name!r} is none of them"))
        if names:
            self._about[names[0]] = None

    def _come_in(self) -> None:
        """Refuse a call for whose first message a quota leaves no room."""
        wait, what = self._wait()
        if wait and self._token is not None:
            message = f"token {self._token.name!r} is over its quota of {what} a second: come back in {wait:.2f} s"
            self._refuse(ResourceExhausted(message, retry_after_s=wait))

    def _wait(self) -> tuple[float, str]:
        return (0.0, "") if self._token is None else self._quotas.wait(self._token, self._size)

    def _pass(self) -> None:
        self._passed = True
        if self._token is not None:
            self._quotas.take(self._token, self._size)

    def _look(self, reply: Any) -> None:
        """Count what a reply says was written; leave out of a list what the token may not see."""
        if self._rule.count is not None:
            self._count += self._rule.count(reply)
        if self._rule.lists and self._token is not None and self._token.collections:
            shown = [each for each in reply.collections if self._token.may_name(each.name)]
            del reply.collections[:]
            reply.collections.extend(shown)

    def _refuse(self, error: LikewiseError) -> NoReturn:
        self._refusal = error
        raise error

    def _fail(self, error: BaseException) -> None:
        """Record how the call ended; raise the refusal where that came out wrapped, as from within a stream."""
        if self._refusal is None or self._refusal is error or _given_up(error):
            self._record(error)
            return
        self._record(self._refusal)
        raise self._refusal from error

    def _meet(self, context: Context) -> None:
        """Note who calls, while there is a call: to ask the context of one that was given up can crash the process."""
        # Without the port: a refusal that comes again comes from another one.
        self._facts["peer"] = str(context.peer()).rpartition(":")[0]
        names = list(context.auth_context().get("x509_common_name", ()))
        if names:
            self._facts["certificate"] = names[0].decode(errors="replace")

    def _record(self, error: BaseException | None) -> None:
        """Tell the audit log, where the call wrote or was refused."""
        refused = error is not None and error is self._refusal
        if not refused and not self._rule.writes:
            return
        facts: dict[str, Any] = {"who": ANONYMOUS if self._token is None else self._token.name, **self._facts}
        facts["method"] = self._method
        if self._about:
            facts["collection"] = ", ".join(self._about)
        if self._passed and self._rule.count is not None:
            facts["count"] = self._count
        facts["code"] = _code(error)
        if refused and not self._passed:
            self._audit.refuse(**facts)
        else:
            self._audit.note(**facts)


class _Raising:
    """An async iterator that raises."""

    def __init__(self, error: LikewiseError) -> None:
        self._error = error

    def __aiter__(self) -> _Raising:
        return self

    async def __anext__(self) -> Any:
        raise self._error


def _code(error: BaseException | None) -> str:
    if error is None:
        return "OK"
    if isinstance(error, LikewiseError):
        return error.code.name
    return "CANCELLED" if _given_up(error) else "INTERNAL"


def _given_up(error: BaseException) -> bool:
    return isinstance(error, (asyncio.CancelledError, GeneratorExit))
