"""Fields of Arrow tables, as Parquet and Arrow files hold them: their types and their values.

A name leads to a field as in a line of JSON, see `records.lookup`.
"""

import functools
from typing import Any

from emo_jax.documents.records import at_index, found_in

INVALID = object()  # stands for a value that is not UTF-8


def type_of(fields: Any, name: str) -> Any:
    """Returns the type of a field of a schema, struct or list; None if there is no such field."""
    import pyarrow
    import pyarrow.types as types

    head, dot, rest = name.partition(".")
    if not isinstance(fields, pyarrow.Schema) and is_list(fields):
        inner = fields.value_type
        if at_index(head) is not None:
            return type_of(inner, rest) if dot else inner
        found = type_of(inner, name)
        return None if found is None else pyarrow.list_(found)
    if not isinstance(fields, pyarrow.Schema) and not types.is_struct(fields):
        return None
    names = [field.name for field in fields]
    if name in names:
        return fields.field(names.index(name)).type
    if not dot or head not in names:
        return None
    return type_of(fields.field(names.index(head)).type, rest)


def path_of(fields: Any, name: str) -> str:
    """Returns the part of a name that leads to its field, or to the outermost list it is in."""
    names = [field.name for field in fields]
    if name in names:
        return name
    head, _, rest = name.partition(".")
    inner = fields.field(names.index(head)).type
    return head if is_list(inner) else f"{head}.{path_of(inner, rest)}"


def values(batch: Any, name: str) -> list[Any]:
    """Returns the field `name` of some rows as Python values."""
    array, rest = inner(batch, name)
    if _is_moment(_plain(array.type)):
        return _moments(array)
    try:
        found = array.to_pylist()
    except UnicodeDecodeError:
        found = [_value(item) for item in array]
    return [found_in(value, rest) for value in found] if rest else found


def _value(item: Any) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return INVALID


def inner(rows: Any, name: str) -> tuple[Any, str]:
    """Returns the array of a field, or of the outermost list it is in and the rest of the name."""
    import pyarrow.compute

    if isinstance(rows, pyarrow.RecordBatch):
        names, field = rows.schema.names, rows.column
    elif is_list(rows.type):
        return rows, name
    else:
        names = [rows.type.field(i).name for i in range(rows.type.num_fields)]
        # Null where the struct is null.
        field = functools.partial(pyarrow.compute.struct_field, rows)
    if name in names:
        return field(names.index(name)), ""
    head, _, rest = name.partition(".")
    return inner(field(names.index(head)), rest)


# --- types ----------------------------------------------------------------------------------------


def _plain(kind: Any) -> Any:
    """Returns the type of the values of a dictionary column; any other type as is."""
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def is_text(kind: Any) -> bool:
    """Returns whether values of this type are texts, or lists of them."""
    import pyarrow.types as types

    while is_list(kind):
        kind = kind.value_type
    kind = _plain(kind)
    return any(
        getattr(types, f"is_{name}")(kind)
        for name in (
            *("string", "large_string", "string_view", "binary", "large_binary"),
            *("binary_view", "fixed_size_binary"),
        )
    )


def is_ids(kind: Any) -> bool:
    """Returns whether values of this type are lists of token ids."""
    import pyarrow.types as types

    return is_list(kind) and types.is_integer(kind.value_type)


def is_list(kind: Any) -> bool:
    """Returns whether values of this type are lists; a map is none."""
    import pyarrow.types as types

    names = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(types, f"is_{name}")(kind) for name in names)


def is_name(kind: Any) -> bool:
    """Returns whether values of this type may be ids or domains."""
    import pyarrow.types as types

    kind = _plain(kind)
    return not (types.is_nested(kind) or types.is_duration(kind) or types.is_interval(kind))


def _is_moment(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind)


def _is_nanoseconds(kind: Any) -> bool:
    import pyarrow.types as types

    return (types.is_timestamp(kind) or types.is_time64(kind)) and kind.unit == "ns"


def _moments(array: Any) -> list[Any]:
    """Converts points in time; beyond Python's calendar or zones, to the stored numbers."""
    import pyarrow as pa

    if array.type != _plain(array.type):
        array = array.dictionary_decode()
    try:
        return _nanoseconds(array) if _is_nanoseconds(array.type) else array.to_pylist()
    except (OverflowError, ValueError, KeyError):  # pyarrow's own is a ValueError, pytz's the last
        if len(array) > 1:
            return [moment for i in range(len(array)) for moment in _moments(array.slice(i, 1))]
        wide = pa.int32() if array.type.bit_width == 32 else pa.int64()
        return array.view(wide).to_pylist()


def _nanoseconds(array: Any) -> list[str | None]:
    """Formats points in time with all nine digits of the second; Python's own have six."""
    import pyarrow as pa

    kind = array.type
    coarse = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.time64("us")
    counts = array.cast(pa.int64()).to_pylist()
    whole = pa.array([None if c is None else c // 1000 for c in counts], pa.int64())
    found: list[str | None] = []
    for moment, count in zip(whole.cast(coarse).to_pylist(), counts, strict=True):
        text = None if moment is None else str(moment)
        if text is not None and count % 1000:
            text = f"{moment.replace(microsecond=0)}"
            cut = 8 if pa.types.is_time64(kind) else 19  # before the zone, if any
            text = f"{text[:cut]}.{count % 10**9:09d}{text[cut:]}"
        found.append(text)
    return found
