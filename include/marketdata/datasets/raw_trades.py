"""Crypto trades as the exchanges say them: the contracts of topics ``crypto-binance-trades-raw`` and ``-kraken-``.

Prices and quantities stay the exchange's own text. What cannot be read of either goes to one topic of dead letters.
"""

from __future__ import annotations

from marketdata.datasets.dataset import BOOLEAN, DOUBLE, LONG, TEXT, TIMESTAMP, Column, Dataset

DEAD_LETTERS = "crypto-trades-dlq"

_PRICE = Column("price", TEXT, "Price in the quote currency, decimal text.")
_QUANTITY = Column("quantity", TEXT, "Amount of the base currency, decimal text.")
_INGESTED = Column("ingestion_timestamp", TIMESTAMP, "When the trade reached us, UTC.")

BINANCE_RAW_TRADE = Dataset(
    name="binance_raw_trade",
    version=1,
    doc="Trades on Binance, spot.",
    columns=(
        Column("event_type", TEXT, "trade, or aggTrade where fills of one order are one message."),
        Column("event_time_ms", LONG, "When the exchange said it, milliseconds since 1970."),
        Column("symbol", TEXT, "Pair without a separator: BTCUSDT."),
        Column("trade_id", LONG, "The exchange's number, by symbol and event type."),
        _PRICE,
        _QUANTITY,
        Column("trade_time_ms", LONG, "When they traded, milliseconds since 1970."),
        Column("is_buyer_maker", BOOLEAN, "The buyer's order was waiting: the seller took it."),
        _INGESTED,
    ),
    key=("symbol", "event_type", "trade_id"),
    event_time="trade_time_ms",
    topic="crypto-binance-trades-raw",
    message_key="symbol",
    dead_letters=DEAD_LETTERS,
)

KRAKEN_RAW_TRADE = Dataset(
    name="kraken_raw_trade",
    version=1,
    doc="Trades on Kraken, spot; the exchange gives them no number.",
    columns=(
        Column("symbol", TEXT, "Pair with a separator: XBT/USD."),
        _PRICE,
        _QUANTITY,
        Column("trade_time_seconds", DOUBLE, "When they traded, seconds since 1970; exact to the microsecond."),
        Column("side", TEXT, "b or s: who took bought or sold."),
        Column("order_type", TEXT, "m or l: market or limit."),
        Column("misc", TEXT, "The exchange's remarks, mostly empty."),
        _INGESTED,
    ),
    key=("symbol", "trade_time_seconds", "side", "order_type", "price", "quantity"),
    event_time="trade_time_seconds",
    topic="crypto-kraken-trades-raw",
    message_key="symbol",
    dead_letters=DEAD_LETTERS,
)
