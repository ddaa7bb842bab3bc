package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"runtime/debug"
	"strings"

	"golang.org/x/crypto/argon2"
)

// argon2id with 7 MiB, five passes and one lane: of the choices that OWASP's Password Storage Cheat Sheet calls equal,
// the one that takes least memory from a small box. Hashes made with others stay valid.
const (
	argonMemory = 7 << 10 // KiB
	argonTime   = 5
	argonLanes  = 1
	saltSize    = 16
	hashSize    = 32
)

// dummy is what the password of an unknown user is compared with, so that it takes as long as a known one's. It was
// printed once by HashPassword(rand.Text()); nobody knows the text, and it would let nobody in.
const dummy = "$argon2id$v=19$m=7168,t=5,p=1$P/4RuE0SByficY0bkL6Kqw$xJjTVzc3YEZ4HaVs4XARX0iZ+LPi8Et9KP7CPj4K7EU"

// derive gives its memory back to the system at once: the rest of the agent allocates so little that the collector
// would leave it for minutes.
func derive(password string, salt []byte, time, memory uint32, lanes uint8) []byte {
	defer debug.FreeOSMemory()
	return argon2.IDKey([]byte(password), salt, time, memory, lanes, hashSize)
}

// HashPassword returns the PHC string of password, about 80 ms of work. It may be called concurrently, but each call takes 7 MiB
// while it runs.
func HashPassword(password string) string {
	salt := make([]byte, saltSize)
	rand.Read(salt)
	key := derive(password, salt, argonTime, argonMemory, argonLanes)
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonLanes, b64(salt), b64(key))
}

// CheckPassword tells whether password belongs to the PHC string phc. A string it cannot read belongs to none.
func CheckPassword(phc, password string) bool {
	parts := strings.Split(phc, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false
	}
	var version, memory, time uint32
	var lanes uint8
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &time, &lanes); err != nil || memory > 1<<20 || time == 0 || time > 16 || lanes == 0 {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(want) != hashSize {
		return false
	}
	return subtle.ConstantTimeCompare(derive(password, salt, time, memory, lanes), want) == 1
}

// RandomPassword is 20 characters that are easy to read and type, with 100 bits of chance.
func RandomPassword() string {
	return strings.ToLower(rand.Text()[:20])
}
