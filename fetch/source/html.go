package source

import "strings"

// LooksLikeHTML tells whether a file that begins with head is a web page, which is what a login page in the way sends.
func LooksLikeHTML(head []byte) bool {
	text := strings.ToLower(strings.TrimSpace(string(head[:min(len(head), 256)])))
	return strings.HasPrefix(text, "<!doctype html") || strings.HasPrefix(text, "<html")
}
