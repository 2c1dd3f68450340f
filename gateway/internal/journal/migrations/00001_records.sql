-- +goose Up
CREATE TABLE records (
    kind   TEXT NOT NULL,
    id     TEXT NOT NULL,
    parent TEXT NOT NULL,
    uniq   TEXT,
    body   BYTEA NOT NULL,
    owner  TEXT NOT NULL DEFAULT '',
    token  BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, id)
);
CREATE INDEX records_parent ON records (kind, parent, id);
CREATE UNIQUE INDEX records_unique ON records (kind, uniq) WHERE uniq IS NOT NULL;
CREATE TABLE sealed (
    kind TEXT NOT NULL,
    id   TEXT NOT NULL,
    body BYTEA NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE TABLE fence (
    name  TEXT NOT NULL PRIMARY KEY,
    token BIGINT NOT NULL,
    owner TEXT NOT NULL
);
INSERT INTO fence (name, token, owner) VALUES ('gateway', 0, '');

-- +goose Down
DROP TABLE fence;
DROP TABLE sealed;
DROP TABLE records;
