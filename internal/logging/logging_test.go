package logging

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTextIsOneLineOfKeysAndValues(t *testing.T) {
	var b bytes.Buffer
	New(&b, Text, slog.LevelInfo).Warn("leases refused", KeyPath, "/etc/twill/leases.json", KeyError, "line 3:\nwrong")
	got := b.String()
	want := `level=WARN msg="leases refused" path=/etc/twill/leases.json error="line 3:\nwrong"` + "\n"
	if !strings.HasSuffix(got, want) || strings.Count(got, "\n") != 1 {
		t.Errorf("got %q, want one line ending in %q", got, want)
	}
}

func TestJSONHasTheSameKeys(t *testing.T) {
	var b bytes.Buffer
	New(&b, JSON, slog.LevelInfo).Info("ready", KeyMTU, 1472)
	var line struct {
		Level, Msg string
		MTU        int `json:"mtu"`
	}
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", b.String(), err)
	}
	if line.Level != "INFO" || line.Msg != "ready" || line.MTU != 1472 {
		t.Errorf("got %+v", line)
	}
}

func TestLinesBelowTheLevelAreNotWritten(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, Text, slog.LevelWarn)
	l.Info("no")
	l.Error("yes")
	if got := b.String(); strings.Contains(got, "msg=no") || !strings.Contains(got, "msg=yes") {
		t.Errorf("got %q", got)
	}
}

func TestFormatTakesItsTwoNamesOnly(t *testing.T) {
	var f Format
	for _, name := range []string{"text", "json"} {
		if err := f.UnmarshalText([]byte(name)); err != nil || string(f) != name {
			t.Errorf("%s: got %q, %v", name, f, err)
		}
	}
	if err := f.UnmarshalText([]byte("xml")); err == nil || f != JSON {
		t.Errorf("xml: got %q, %v", f, err)
	}
}

func TestLevelIsChangedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLevel(slog.LevelInfo)
		at := func(after time.Duration, want slog.Level) {
			t.Helper()
			<-time.After(after) // of the bubble
			synctest.Wait()
			if got := l.Level(); got != want {
				t.Errorf("after another %s: %s, want %s", after, got, want)
			}
		}
		l.Change(slog.LevelDebug, time.Minute)
		at(59*time.Second, slog.LevelDebug)
		l.Change(slog.LevelError, time.Minute) // replaces the first
		at(2*time.Second, slog.LevelError)
		at(time.Minute, slog.LevelInfo)
		l.Change(slog.LevelDebug, time.Minute)
		l.Change(0, 0)
		at(0, slog.LevelInfo)
		at(time.Hour, slog.LevelInfo)
	})
}
