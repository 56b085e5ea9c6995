// Package spelling finds the known key that a misspelled one was meant to be.
package spelling

import "strings"

// Nearest returns the known key closest to key, and how many letters differ: 0
// if only the case differs.
func Nearest(key string, known []string) (best string, distance int) {
	distance = -1
	for _, k := range known {
		if d := edits(strings.ToLower(key), strings.ToLower(k)); distance < 0 || d < distance {
			best, distance = k, d
		}
	}
	return best, distance
}

// edits returns the Levenshtein distance in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
