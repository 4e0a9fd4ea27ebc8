#!/bin/sh
# Shows that SQLite 3.54.1 never uses a partial index whose condition compares an expression with a column by `<`.
#
# The condition of a query is turned around before it is compared with that of the index (`a + b < w` becomes
# `w > a + b`), and the condition of the index is not: the very same words do not match, and the whole table is sorted,
# without a word. Written the other way in the index, both forms of the query match.
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

FORMS = ("a + b < w", "w > a + b")


def plans(condition):
    """How SQLite answers either form of a query where an index has this condition."""
    database = apsw.Connection(":memory:")
    database.execute("CREATE TABLE asked (number INTEGER PRIMARY KEY, rank REAL, a INT, b INT, w INT)")
    database.execute(f"CREATE INDEX wanted ON asked (rank, number) WHERE {condition}")
    query = "EXPLAIN QUERY PLAN SELECT number FROM asked WHERE {} ORDER BY rank, number LIMIT 1"
    return {form: " / ".join(row[3] for row in database.execute(query.format(form))) for form in FORMS}


print("SQLite", apsw.sqlite_lib_version())
found = {condition: plans(condition) for condition in FORMS}
for condition, of_query in found.items():
    for form, plan in of_query.items():
        print(f"index WHERE {condition}, query WHERE {form}: {plan}")
assert all("USING INDEX wanted" in plan for plan in found["w > a + b"].values())
assert all(plan == "SCAN asked / USE TEMP B-TREE FOR ORDER BY" for plan in found["a + b < w"].values())
END
"$folder/sqlite/bin/python" "$folder/finding.py"
