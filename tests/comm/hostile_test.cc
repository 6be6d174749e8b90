// A stranger on the network against a real fabric in another process: the holes that were there,
// one by one, and then many messages of each kind, made up by a seeded generator. The fabric stays,
// its memory stays, and its peers go on.
#include <malloc.h>
#include <unistd.h>

#include <fstream>
#include <iostream>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/rng.h"
#include "tests/child.h"
#include "tests/comm/raw_ucx_client.h"
#include "tests/comm/test_fabrics.h"

namespace annulus {
namespace {

constexpr uint64_t kChannel = 0x5eed;
constexpr absl::string_view kFriend = "I am a friend";

// Trusts who says that it is a friend, and echoes; has an exchange open with its parent.
TEST_CASE("child: a fabric with a door", "[.child]") {
  mallopt(M_PERTURB, 0x5a);  // no piece of memory is 0 by chance
  UcxOptions options;
  options.peers.stranger_time = absl::Milliseconds(500);
  options.peers.half_message_time = absl::Seconds(2);
  auto fabric = UcxFabric::Create(options);
  REQUIRE(fabric.ok());
  Messenger& messenger = (*fabric)->messenger();
  messenger.SetHandlers({[&](PeerId from, Message message) {
                           if (message.body != std::string(kFriend)) return;
                           messenger.Trust(from);
                           (void)messenger.Send(from, std::move(message));
                         },
                         [](PeerId, absl::Status) {}});
  std::cout << "\naddress " << messenger.address() << std::endl;
  std::string parent;
  std::getline(std::cin, parent);
  const auto exchange = (*fabric)->OpenExchange(kChannel, 1, {parent, messenger.address()});
  REQUIRE(exchange.ok());
  std::byte in[8];
  REQUIRE((*exchange)->Post({}, {{0, in, sizeof in}}).ok());
  while (getppid() != 1) messenger.Poll(absl::Milliseconds(50));
}

// The victim, and a friend of it.
struct Siege {
  Siege() : fabrics("ucx tcp"), child("child: a fabric with a door"), peer(fabrics) {
    SetLogLevel(LogLevel::kOff);
    address = child.ReadLine("address ");
    child.WriteLine(peer.messenger().address());
    id = *peer.messenger().Connect(address);
    REQUIRE(Echo(1000));
  }

  // Whether it is there and knows its friend.
  bool Echo(size_t bytes = 200'000) {
    const size_t before = peer.messages.size();
    if (!peer.messenger().Send(id, {1, std::string(kFriend), Buffer(bytes)}).ok()) return false;
    return fabrics.PollUntil({&peer.messenger()}, [&] {
      return peer.messages.size() > before || !peer.downs.empty();
    }) && peer.downs.empty();
  }

  size_t ResidentBytes() const {
    std::ifstream file(absl::StrCat("/proc/", child.pid(), "/statm"));
    size_t total = 0, resident = 0;
    file >> total >> resident;
    return resident * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  }

  TestFabrics fabrics;
  Child child;
  TestNode peer;
  std::string address;
  PeerId id = 0;
};

MessengerHeader Greeting() {
  MessengerHeader header = {};
  header.key = LinkKey::Random();
  header.number = RandomSecret();
  header.kind = MessengerHeader::kHello;
  return header;
}

TEST_CASE("two messages do not write beyond what the first one made room for", "[hostile]") {
  Siege siege;
  RawUcxClient client(siege.address);
  const std::string data(1000, 'x');
  MessengerHeader header = Greeting();
  header.payload_bytes = 60'000;
  header.offset = kUcxChunkBytes;
  client.SendEager(UcxAm::kMessenger, UcxHeader(header), data);
  header.payload_bytes = uint64_t{1} << 40;
  header.offset = uint64_t{1} << 39;
  for (int i = 0; i < 100; ++i) {
    client.SendEager(UcxAm::kMessenger, UcxHeader(header), data);
    header.offset += size_t{1} << 30;
  }
  client.Flush();
  CHECK(siege.Echo());
}

TEST_CASE("a message of 2^62 bytes ends nobody", "[hostile]") {
  Siege siege;
  RawUcxClient client(siege.address);
  for (const uint64_t bytes : {uint64_t{1} << 62, ~uint64_t{0}, uint64_t{1} << 40}) {
    MessengerHeader header = Greeting();
    header.payload_bytes = bytes;
    client.SendEager(UcxAm::kMessenger, UcxHeader(header));
    std::swap(header.payload_bytes, header.body_bytes);
    header.number = RandomSecret();
    client.SendEager(UcxAm::kMessenger, UcxHeader(header));
  }
  client.Flush();
  CHECK(siege.Echo());
}

TEST_CASE("nobody says goodbye in the name of another fabric or peer", "[hostile]") {
  Siege siege;
  RawUcxClient client(siege.address);
  const UcxAddress peer = *UcxAddress::Parse(siege.peer.messenger().address());
  for (const uint64_t fabric : {peer.fabric, client.victim().fabric}) {
    // What said so once, and with the length of what says so now.
    std::string gone(LinkKey::kBytes, '\0');
    std::memcpy(gone.data(), &fabric, sizeof fabric);
    client.SendEager(UcxAm::kFabric, gone.substr(0, sizeof fabric));
    client.SendEager(UcxAm::kFabric, gone);
    for (uint64_t number = 0; number < 100; ++number) {
      MessengerHeader header = {};
      std::memcpy(header.key.bytes.data(), &fabric, sizeof fabric);
      header.number = number;
      header.kind = MessengerHeader::kGoodbye;
      client.SendEager(UcxAm::kMessenger, UcxHeader(header));
    }
  }
  client.Flush();
  for (int i = 0; i < 3; ++i) CHECK(siege.Echo());
}

// A message made up of what a sender would say, with some of it changed.
class Attacker {
 public:
  Attacker(RawUcxClient& client, uint64_t seed) : client_(client), rng_(seed), data_(70'000, 'd') {
    for (MessengerHeader& name : names_) name = Greeting();
  }

  // Pieces of messages under a few names, most of them true to one another.
  void Piece() {
    MessengerHeader header = Name();
    header.sequence = Some(3);
    header.kind = header.sequence == 0 ? MessengerHeader::kHello : MessengerHeader::kMessage;
    header.body_bytes = Sometimes(4) ? Some(100'000) : 0;
    header.payload_bytes = Some(200'000);
    header.offset = kUcxChunkBytes * rng_.Below(4) + (Sometimes(4) ? rng_.Next() : 0);
    if (Sometimes(8)) header.kind = static_cast<uint8_t>(rng_.Below(5));
    if (Sometimes(8)) header.to_opener = 1;
    const size_t bytes = Sometimes(2) ? kUcxChunkBytes : rng_.Below(3000);
    Send(UcxAm::kMessenger, UcxHeader(header, std::string(rng_.Below(40), 't')), bytes);
  }

  // What exchanges say, of channels that are open or not.
  void Announcement() {
    PieceHeader header;
    header.channel = Sometimes(8) ? kChannel ^ (uint64_t{1} << rng_.Below(64)) : rng_.Next();
    header.sequence = Some(4);
    header.offset = Some(100);
    header.size_bytes = Some(1000);
    header.rank = static_cast<uint32_t>(Some(3));
    header.kind = static_cast<uint32_t>(Some(4));
    Send(UcxAm::kExchange, UcxHeader(header, std::string(rng_.Below(1000), 'w')), Some(100) % 2000);
  }

  // Greetings and first messages, with an address that is right, or wrong, or another's.
  void Hello() {
    MessengerHeader header = Sometimes(2) ? Greeting() : Name();
    std::string address = client_.address();
    if (!Sometimes(50)) address[rng_.Below(address.size())] ^= 1 + rng_.Below(255);
    Send(UcxAm::kMessenger, UcxHeader(header, address), 0);
    if (Sometimes(2)) return;
    header.sequence = 1 + rng_.Below(2);
    header.kind = MessengerHeader::kMessage;
    header.type = static_cast<uint32_t>(rng_.Below(30));
    header.payload_bytes = Sometimes(4) ? rng_.Below(1000) : 0;
    std::string body(rng_.Below(300), '\0');
    for (char& byte : body) byte = static_cast<char>(rng_.Next());
    Send(UcxAm::kMessenger, UcxHeader(header, body), header.payload_bytes);
  }

  // Goodbyes of fabrics, kinds of message that nobody has, and bytes without any form.
  void Noise() {
    std::string header(rng_.Below(120), '\0');
    for (char& byte : header) byte = static_cast<char>(rng_.Next());
    const auto am = static_cast<unsigned>(Sometimes(8) ? rng_.Below(Sometimes(2) ? 8 : 1 << 16)
                                                       : rng_.Below(3));
    client_.Send(am, header, absl::string_view(data_).substr(0, Some(200) % data_.size()),
                 UCP_AM_SEND_FLAG_EAGER);
  }

 private:
  bool Sometimes(uint64_t one_in) { return rng_.Below(one_in) == 0; }
  // Mostly below the bound; now and then anything.
  uint64_t Some(uint64_t bound) { return Sometimes(10) ? rng_.Next() : rng_.Below(bound); }
  MessengerHeader Name() {
    MessengerHeader& name = names_[rng_.Below(std::size(names_))];
    if (Sometimes(20)) name = Greeting();
    return name;
  }
  void Send(UcxAm am, const std::string& header, size_t data_bytes) {
    client_.SendEager(am, header, absl::string_view(data_).substr(0, data_bytes));
  }

  RawUcxClient& client_;
  Rng rng_;
  const std::string data_;
  MessengerHeader names_[8];
};

using Kind = void (Attacker::*)();

void LaySiege(Kind kind, int count, uint64_t seed) {
  CAPTURE(seed, count);
  Siege siege;
  RawUcxClient client(siege.address);
  Attacker attacker(client, seed);
  const auto attack = [&](int messages) {
    for (int i = 0; i < messages; ++i) {
      (attacker.*kind)();
      if (!client.connected()) client.Connect();
      if (i % (messages / 10) == 0) REQUIRE(siege.Echo());
    }
    client.Flush();
    REQUIRE(siege.Echo());
  };
  attack(count / 5);  // what a fabric keeps for strangers at most, it has then
  const size_t before = siege.ResidentBytes();
  attack(count - count / 5);
  const size_t after = siege.ResidentBytes();
  CHECK(after < before + (size_t{48} << 20));
  WARN(count << " messages: " << before / 1024 << " KiB resident before, " << after / 1024
             << " after");
}

void LayAllSieges(int count) {
  SECTION("pieces") {
    LaySiege(&Attacker::Piece, count, 11);
  }
  SECTION("announcements") {
    LaySiege(&Attacker::Announcement, count, 12);
  }
  SECTION("greetings") {
    LaySiege(&Attacker::Hello, count, 13);
  }
  SECTION("noise") {
    LaySiege(&Attacker::Noise, count, 14);
  }
}

TEST_CASE("ten thousand hostile messages of a kind change nothing for the others", "[hostile]") {
  LayAllSieges(10'000);
}

TEST_CASE("a million hostile messages of a kind change nothing for the others", "[.million]") {
  LayAllSieges(1'000'000);
}

}  // namespace
}  // namespace annulus
