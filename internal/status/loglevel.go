package status

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"
)

// logLevelPath is the path of the request that changes the log level.
const logLevelPath = "/log-level"

// LogLevelRoute returns the request by which a command changes the daemon's log level
// for a time; 0 ends the change. change must be safe for concurrent use.
func LogLevelRoute(change func(to slog.Level, during time.Duration)) Route {
	return Route{"POST " + logLevelPath, func(w http.ResponseWriter, r *http.Request) {
		var level slog.Level
		during, err := time.ParseDuration(r.URL.Query().Get("for"))
		if err == nil {
			err = level.UnmarshalText([]byte(r.URL.Query().Get("level")))
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		change(level, during)
		w.WriteHeader(http.StatusNoContent)
	}}
}

// ChangeLogLevel sets the log level of the daemon that listens on the unix socket path,
// for a time. With 0 the configured level is in force again.
func ChangeLogLevel(ctx context.Context, path string, to slog.Level, during time.Duration) error {
	query := url.Values{"level": {to.String()}, "for": {during.String()}}
	code, _, err := request(ctx, path, http.MethodPost, logLevelPath+"?"+query.Encode())
	if err == nil && code != http.StatusNoContent {
		err = fmt.Errorf("change the log level of twilld on %s: %d %s; is it an older version?", path, code, http.StatusText(code))
	}
	return err
}
