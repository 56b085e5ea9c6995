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
// temporarily. It calls change, which must be safe for concurrent use; a duration of 0
// ends the change.
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

// ChangeLogLevel sets the log level of the daemon that listens on the unix socket path for
// the given time. A duration of 0 restores the configured level.
func ChangeLogLevel(ctx context.Context, path string, to slog.Level, during time.Duration) error {
	query := url.Values{"level": {to.String()}, "for": {during.String()}}
	code, _, err := request(ctx, path, http.MethodPost, logLevelPath+"?"+query.Encode())
	if err == nil && code != http.StatusNoContent {
		err = fmt.Errorf("change the log level of twilld on %s: %d %s; is it an older version?", path, code, http.StatusText(code))
	}
	return err
}
