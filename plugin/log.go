package plugin

import (
	"io"
	"log/slog"
	"os"
	"time"
)

// Logger returns a logger whose lines reach the gateway's log with their level and their attributes.
func Logger() *slog.Logger { return slog.New(newHandler(os.Stderr)) }

// newHandler writes lines as go-hclog does in JSON, which the gateway reads.
func newHandler(w io.Writer) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.TimeKey:
			return slog.String("@timestamp", a.Value.Time().Format(time.RFC3339Nano))
		case slog.LevelKey:
			level, _ := a.Value.Any().(slog.Level)
			return slog.String("@level", levelName(level))
		case slog.MessageKey:
			a.Key = "@message"
		}
		return a
	}})
}

func levelName(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}
