// Package version knows which version of twill a binary is.
package version

import "runtime/debug"

// Release is the version of this source tree. The newest heading of CHANGELOG.md is
// the same, and "make release" names its files after it.
const Release = "0.1.0"

// String returns the version of the running binary in the form of semver.org, with the
// commit as build metadata: "0.1.0+3144219c0f8e", and ".dirty" at the end if files
// differed from it. A build without version control has no more than the release.
func String() string {
	info, _ := debug.ReadBuildInfo()
	return of(info)
}

// of is String of a binary with this build information, which may be nil.
func of(info *debug.BuildInfo) string {
	if info == nil {
		return Release
	}
	commit, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ".dirty"
		}
	}
	if commit == "" {
		return Release
	}
	return Release + "+" + commit + dirty
}
