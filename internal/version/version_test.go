package version

import (
	"os"
	"regexp"
	"runtime/debug"
	"testing"
)

func TestVersionIsTheReleaseAndTheCommit(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "3144219c0f8e5d1a6b7c8d9e0f1a2b3c4d5e6f70"}
	for _, c := range []struct {
		name string
		info *debug.BuildInfo
		want string
	}{
		{"without build information", nil, Release},
		{"without version control", &debug.BuildInfo{}, Release},
		{"of a commit", &debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "false"}}},
			Release + "+3144219c0f8e"},
		{"of a commit and changed files", &debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}},
			Release + "+3144219c0f8e.dirty"},
	} {
		if got := of(c.info); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestChangelogBeginsWithThisRelease(t *testing.T) {
	text, err := os.ReadFile("../../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^## (\S+)`).FindSubmatch(text)
	if m == nil || string(m[1]) != Release {
		t.Errorf("the first heading of CHANGELOG.md is %q, want %q", m, Release)
	}
}
