#!/bin/sh
# Shows that SQLite 3.54.1 searches an index by the first part of a row value alone where the second is the rowid.
#
# `(rank, number) > (?, ?)` goes to its place in an index on both columns; where `number` is the INTEGER PRIMARY KEY it
# goes to the first row of that rank and reads on from there: the next of many rows of one rank takes time in
# proportion to those passed, though the plan names a covering index.
set -eu
folder=${1:-} # to install into; a temporary one if none is given
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
python3 -m venv "$folder/sqlite"
"$folder/sqlite/bin/pip" install --quiet apsw==3.54.1.0 # brings SQLite of that version
cat > "$folder/finding.py" <<'END'
import apsw

ROWS = 50_000
NEXT = "SELECT number FROM asked WHERE (rank, number) > (0, {}) ORDER BY rank, number LIMIT 1"


def looked_at(columns):
    """The plan, and steps of SQLite's machine to find the row behind the first and behind the last but one."""
    database = apsw.Connection(":memory:")
    database.execute(f"CREATE TABLE asked ({columns})")
    database.execute("CREATE INDEX in_order ON asked (rank, number)")
    database.executemany("INSERT INTO asked (number, rank) VALUES (?, 0)", ((n,) for n in range(ROWS)))
    plan = next(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {NEXT.format(0)}"))
    steps = []
    for number in (0, ROWS - 2):
        counted = [0]

        def count():
            counted[0] += 1
            return False

        database.set_progress_handler(count, 1)
        assert next(database.execute(NEXT.format(number)))[0] == number + 1
        database.set_progress_handler(None)
        steps.append(counted[0])
    return plan, steps


print("SQLite", apsw.sqlite_lib_version())
rowid = looked_at("number INTEGER PRIMARY KEY, rank REAL")
other = looked_at("other INTEGER PRIMARY KEY, number INT, rank REAL")
for name, (plan, steps) in (("number is the rowid", rowid), ("number is another column", other)):
    print(f"{name}: {plan}; steps behind the first and the last row but one: {steps}")
assert "((rank,number)>(?,?))" in other[0] and other[1][1] < 2 * other[1][0]
assert "(rank>?)" in rowid[0] and rowid[1][1] > ROWS
END
"$folder/sqlite/bin/python" "$folder/finding.py"
