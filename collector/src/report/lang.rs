//! The report's words, one struct of texts per language: a text that is missing in one of them does not compile.

#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use jiff::ZonedDateTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::format::zoned;
use super::model::Period;

/// The language of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lang {
    /// English.
    #[default]
    En,
    /// Japanese.
    Ja,
}

impl Lang {
    /// The texts of this language.
    pub fn texts(self) -> &'static Texts {
        match self {
            Lang::En => &EN,
            Lang::Ja => &JA,
        }
    }
}

impl FromStr for Lang {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "en" => Ok(Lang::En),
            "ja" => Ok(Lang::Ja),
            _ => Err(format!("{text:?} is not a language of the report: use en or ja")),
        }
    }
}

impl fmt::Display for Lang {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.texts().code)
    }
}

macro_rules! texts {
    ($($name:ident)*) => {
        /// Every text of the report in one language. Words in braces are replaced by values.
        #[allow(missing_docs, reason = "each text is its own description")]
        pub struct Texts {
            $(pub $name: &'static str,)*
        }

        #[cfg(test)]
        impl Texts {
            fn all(&self) -> Vec<(&'static str, &'static str)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

texts! {
    code title honorific site period time_zone made
    date date_time tick_date days hours minutes seconds
    lead lead_quiet no_flows
    direction_in direction_out internal transit packets flows total share other
    change_of change_none
    traffic traffic_note traffic_note_long traffic_chart traffic_desc internal_chart rates average peak percentile peak_at step_second step_1 step_5
    local_hosts local_hosts_note remote_hosts remote_hosts_note conversations conversations_note
    host peer protocols protocol ports ports_note port service vlans vlan untagged end_reasons end_reason
    top_of none
    reason_0 reason_1 reason_2 reason_3 reason_4 reason_5
    quality quality_note verdict_good verdict_look verdict_unknown
    packets_good packets_dropped packets_unbalanced packets_unknown
    flows_good flows_dropped flows_unbalanced flows_unknown
    sequence_good sequence_lost sequence_unknown gaps_good gaps_some gaps_unknown replayed
    flows_waiting interrupted_killed interrupted_stopped interrupted_more interrupted_short
    equation_packets equation_flows on_wire metered dropped ignored ended delivered
    spooled left_in_spool in_flight carried_over other_terms
    books books_note metering exporting process balanced not_balanced incomplete restarts
    exporters exporters_note exporters_note_interrupted exporter seen coverage exported received lost gap_list omitted
    sessions sessions_note transport start end running last_seen messages records gaps ended_note
    statistics statistics_note uptime octets_sent not_sent_flows
    notes notes_local notes_flows notes_octets notes_percentile made_by
}

impl Texts {
    /// The name of a flowEndReason.
    pub fn reason(&self, reason: u8) -> &'static str {
        match reason {
            1 => self.reason_1,
            2 => self.reason_2,
            3 => self.reason_3,
            4 => self.reason_4,
            5 => self.reason_5,
            _ => self.reason_0,
        }
    }

    /// A date and time to the minute, with the year.
    pub fn date_time(&self, at: &ZonedDateTime) -> String {
        at.strftime(self.date_time).to_string()
    }

    /// The beginning and the end of a period, to the minute; the end without its date where that is the same.
    pub fn ends(&self, period: Period, tz: &TimeZone) -> [String; 2] {
        let (from, to) = (zoned(period.from_ms, tz), zoned(period.to_ms, tz));
        let same_day = from.date() == to.date();
        [self.date_time(&from), if same_day { to.strftime("%H:%M").to_string() } else { self.date_time(&to) }]
    }

    /// A period: days alone where it begins and ends at midnight.
    pub fn period(&self, period: Period, tz: &TimeZone) -> String {
        let (from, to) = (zoned(period.from_ms, tz), zoned(period.to_ms, tz));
        let midnight = |at: &ZonedDateTime| at.strftime("%H%M%S").to_string() == "000000";
        if !(midnight(&from) && midnight(&to)) {
            return self.ends(period, tz).join(" – ");
        }
        let last = zoned(period.to_ms - 1, tz);
        let (first, last) = (from.strftime(self.date).to_string(), last.strftime(self.date).to_string());
        if first == last { first } else { format!("{first} – {last}") }
    }

    /// A length of time in its two largest units.
    pub fn duration(&self, length_ms: i64) -> String {
        let seconds = length_ms.max(0) / 1000;
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        let parts = [(days, self.days), (hours, self.hours), (minutes, self.minutes), (seconds % 60, self.seconds)];
        let first = parts.iter().position(|(value, _)| *value > 0).unwrap_or(3);
        let words: Vec<String> = parts[first..]
            .iter()
            .take(2)
            .filter(|(value, _)| *value > 0)
            .map(|(value, unit)| format!("{value}{unit}"))
            .collect();
        if words.is_empty() { format!("0{}", self.seconds) } else { words.join(" ") }
    }
}

/// Replaces each `{name}` of a text by its value.
pub fn fill(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    // One pass: braces inside a value are not looked at again.
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        rest = after;
        let Some((name, after)) = after.split_once('}') else { break };
        out.push_str(values.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value));
        rest = after;
    }
    out.push_str(rest);
    out
}

static EN: Texts = Texts {
    code: "en",
    title: "Network traffic report",
    honorific: "",
    site: "Site",
    period: "Period",
    time_zone: "Time zone",
    made: "Made",
    date: "%-d %B %Y",
    date_time: "%-d %b %Y, %H:%M",
    tick_date: "%-d %b",
    days: "\u{a0}d",
    hours: "\u{a0}h",
    minutes: "\u{a0}min",
    seconds: "\u{a0}s",
    lead: "{in} came in and {out} went out. Inbound traffic averaged {average_in} and was busiest on {peak_at}, at {peak_in}.",
    lead_quiet: "Nothing crossed the site’s border: the {all} seen stayed on the site or passed by.",
    no_flows: "No flows were recorded in this period.",
    direction_in: "In",
    direction_out: "Out",
    internal: "Internal",
    transit: "Transit",
    packets: "Packets",
    flows: "Flows",
    total: "Total",
    share: "Share",
    other: "Other",
    change_of: "{change} vs. previous",
    change_none: "nothing previously",
    traffic: "Traffic over time",
    traffic_note: "Averages of {step} each; the dashed lines are the 95th percentile.",
    traffic_note_long: "The areas are averages of {step} each, the lines the highest {sample} within it; the dashed lines are the 95th percentile.",
    traffic_chart: "Inbound and outbound traffic over time",
    traffic_desc: "Inbound traffic is drawn upwards, outbound downwards. Highest inbound rate {peak_in}, highest outbound rate {peak_out}.",
    internal_chart: "Internal traffic over time",
    rates: "Rates",
    average: "Average",
    peak: "Peak",
    percentile: "95th percentile",
    peak_at: "Time of peak",
    step_second: "1-second average",
    step_1: "1-minute average",
    step_5: "5-minute average",
    local_hosts: "Local hosts",
    local_hosts_note: "In and out: what the host received and sent, within the site too.",
    remote_hosts: "Remote hosts",
    remote_hosts_note: "In and out, seen from the site: what came from the host and what went to it.",
    conversations: "Conversations",
    conversations_note: "In and out: what the first host received from the second and sent to it.",
    host: "Host",
    peer: "With",
    protocols: "Protocols",
    protocol: "Protocol",
    ports: "Services",
    ports_note: "By the port of the host that answered.",
    port: "Port",
    service: "Service",
    vlans: "VLANs",
    vlan: "VLAN",
    untagged: "untagged",
    end_reasons: "Why flow records were closed",
    end_reason: "Reason",
    top_of: "The {top} largest",
    none: "None in this period.",
    reason_0: "not stated",
    reason_1: "idle",
    reason_2: "long-lived, reported in parts",
    reason_3: "connection ended",
    reason_4: "probe stopped",
    reason_5: "probe’s flow table full",
    quality: "Data quality",
    quality_note: "Every packet that reached the probe, and every flow made of them, is counted under a name: measured, ignored or lost. Where both sides of an equation agree, nothing went missing unnoticed.",
    verdict_good: "Complete: everything is accounted for",
    verdict_look: "Please note the remarks under Data quality",
    verdict_unknown: "Completeness could not be checked",
    packets_good: "All {total} packets on the wire are accounted for; none was dropped.",
    packets_dropped: "All {total} packets on the wire are accounted for; {dropped} of them ({share}) were dropped before they could be measured.",
    packets_unbalanced: "The packet counts do not add up: {difference} packets are unexplained.",
    packets_unknown: "No probe reported packet counts, so loss before the exporter cannot be ruled out.",
    flows_good: "All {total} flows that ended are accounted for; none was dropped.",
    flows_dropped: "All {total} flows that ended are accounted for; {dropped} of them ({share}) were dropped before they were delivered.",
    flows_unbalanced: "The flow counts do not add up: {difference} flows are unexplained.",
    flows_unknown: "No probe reported flow counts, so loss inside the exporter cannot be ruled out.",
    sequence_good: "No record is missing between exporter and collector: the sequence numbers of {records} records have no gap.",
    sequence_lost: "Records missing between exporter and collector: {lost} (gaps in the sequence numbers: {gaps}).",
    sequence_unknown: "No session is on record for this period.",
    gaps_good: "Every exporter was heard from without interruption.",
    gaps_some: "Interruptions in which an exporter was not heard from: {count}, {duration} in all.",
    gaps_unknown: "No exporter was heard from in this period.",
    replayed: "The flows of this period arrived at another time ({window}), as when a capture file is replayed or the probe could not reach the collector; sessions and counts below are from then.",
    flows_waiting: "{waiting} of the flows were waiting in the probe’s spool at its last report of this period. They are in this report as far as they arrived before it was made.",
    interrupted_killed: "The probe {exporter} was not metering from {from} to {to} ({duration}): it was killed, and the flows in its cache were lost.",
    interrupted_stopped: "The probe {exporter} was not metering from {from} to {to} ({duration}): it was stopped.",
    interrupted_more: "Further times in which a probe was not metering: {count}.",
    interrupted_short: "not metering: {from} – {to} ({duration})",
    equation_packets: "Packets",
    equation_flows: "Flows",
    on_wire: "on the wire",
    metered: "measured",
    dropped: "dropped",
    ignored: "ignored (not IP)",
    ended: "ended",
    delivered: "delivered",
    spooled: "waiting in the probe’s spool",
    left_in_spool: "left to the next run",
    in_flight: "underway",
    carried_over: "underway or waiting before",
    other_terms: "other",
    books: "The probe’s books",
    books_note: "As the probe reports them, for this period: each process by itself, each drop and each ignore by its name. Delivered is what the collector acknowledged as stored (over UDP: what was sent); left_in_spool is what a run left behind that ended: the next one delivers it and does not count it again.",
    metering: "metering",
    exporting: "exporting",
    process: "Process",
    balanced: "balanced",
    not_balanced: "not balanced",
    incomplete: "total not reported",
    restarts: "Restarts",
    exporters: "Exporters",
    exporters_note: "Exported: flow records that the probe delivered in this period, without those that an earlier run had left in its spool. Received: those of this report, by the time when the flow began; the two differ by those, and by what began in one period and was delivered in another.",
    exporters_note_interrupted: "Dark marks: the probe itself was not metering.",
    exporter: "Exporter",
    seen: "First and last data",
    coverage: "Heard from",
    exported: "Exported",
    received: "Received",
    lost: "Lost",
    gap_list: "Interruptions",
    omitted: "and {count} more",
    sessions: "Sessions",
    sessions_note: "Transport sessions between exporters and collector, the latest of {count}. Figures are of this period; records that came again count once.",
    transport: "Transport",
    start: "Start",
    end: "End",
    running: "running",
    last_seen: "last seen {time}",
    messages: "Messages",
    records: "Records",
    gaps: "Gaps",
    ended_note: "Note",
    statistics: "Exporting processes",
    statistics_note: "What each exporting process says of itself.",
    uptime: "Up for",
    octets_sent: "Sent",
    not_sent_flows: "Flows not sent",
    notes: "How to read this report",
    notes_local: "Local networks: {networks}. Multicast and broadcast count as local.",
    notes_flows: "The octets of a flow are spread evenly over its time; the flow itself is counted in the period in which it began.",
    notes_octets: "Octets are those of IP packets, headers included, Ethernet framing not. Units are decimal (1 MB = 1,000,000 B).",
    notes_percentile: "The 95th percentile is taken over {sample}s, the highest 5 % left out.",
    made_by: "Made by Nagare",
};

static JA: Texts = Texts {
    code: "ja",
    title: "ネットワークトラフィックレポート",
    honorific: "\u{3000}御中",
    site: "拠点",
    period: "対象期間",
    time_zone: "タイムゾーン",
    made: "作成日時",
    date: "%Y年%-m月%-d日",
    date_time: "%Y年%-m月%-d日 %H:%M",
    tick_date: "%-m/%-d",
    days: "日",
    hours: "時間",
    minutes: "分",
    seconds: "秒",
    lead: "期間中の受信は{in}、送信は{out}でした。受信の平均は{average_in}、最大は{peak_at}の{peak_in}です。",
    lead_quiet: "拠点の内外をまたぐ通信はありませんでした。観測した{all}は、拠点内の通信または通過トラフィックです。",
    no_flows: "この期間に記録されたフローはありません。",
    direction_in: "受信",
    direction_out: "送信",
    internal: "拠点内",
    transit: "通過",
    packets: "パケット数",
    flows: "フロー数",
    total: "合計",
    share: "割合",
    other: "その他",
    change_of: "前期間比 {change}",
    change_none: "前期間のデータなし",
    traffic: "トラフィックの推移",
    traffic_note: "{step}ごとの平均です。破線は95パーセンタイルを示します。",
    traffic_note_long: "塗りは{step}ごとの平均、線はその中で最も高い{sample}、破線は95パーセンタイルを示します。",
    traffic_chart: "受信・送信トラフィックの推移",
    traffic_desc: "上向きが受信、下向きが送信です。受信の最大は{peak_in}、送信の最大は{peak_out}です。",
    internal_chart: "拠点内トラフィックの推移",
    rates: "通信速度",
    average: "平均",
    peak: "最大",
    percentile: "95パーセンタイル",
    peak_at: "最大となった時刻",
    step_second: "1秒間平均",
    step_1: "1分間平均",
    step_5: "5分間平均",
    local_hosts: "拠点内ホスト",
    local_hosts_note: "受信・送信は、そのホストが受け取った量と送り出した量です(拠点内の通信を含みます)。",
    remote_hosts: "外部ホスト",
    remote_hosts_note: "受信・送信は拠点から見た向きです。受信はそのホストから届いた量、送信はそのホストへ送った量を表します。",
    conversations: "通信の組み合わせ",
    conversations_note: "受信・送信は、左側のホストが相手から受け取った量と、相手へ送った量です。",
    host: "ホスト",
    peer: "通信相手",
    protocols: "プロトコル",
    protocol: "プロトコル",
    ports: "サービス",
    ports_note: "応答側ホストのポート番号で分類しています。",
    port: "ポート",
    service: "サービス",
    vlans: "VLAN",
    vlan: "VLAN",
    untagged: "タグなし",
    end_reasons: "フローの終了理由",
    end_reason: "理由",
    top_of: "上位{top}件",
    none: "該当するデータはありません。",
    reason_0: "不明",
    reason_1: "無通信によるタイムアウト",
    reason_2: "長時間継続(分割して記録)",
    reason_3: "通信の終了",
    reason_4: "プローブの停止",
    reason_5: "フローテーブルの上限",
    quality: "データ品質",
    quality_note: "プローブに届いたすべてのパケットと、そこから作られたすべてのフローは、計測・対象外・損失のいずれかとして名前を付けて数えています。式の左右が一致していれば、気付かれないまま失われたデータはありません。",
    verdict_good: "欠損なし(すべての計数が一致)",
    verdict_look: "「データ品質」に確認いただきたい事項があります",
    verdict_unknown: "データの完全性は確認できませんでした",
    packets_good: "回線上の{total}パケットはすべて計数が一致しており、破棄はありません。",
    packets_dropped: "回線上の{total}パケットはすべて計数が一致していますが、うち{dropped}パケット({share})は計測前に破棄されました。",
    packets_unbalanced: "パケットの計数が一致しません。{difference}パケットの行方を説明できません。",
    packets_unknown: "プローブからパケット数の報告がないため、エクスポーターに届く前の損失がないとは断定できません。",
    flows_good: "終了した{total}フローはすべて計数が一致しており、破棄はありません。",
    flows_dropped: "終了した{total}フローはすべて計数が一致していますが、うち{dropped}フロー({share})はコレクターに届く前に破棄されました。",
    flows_unbalanced: "フローの計数が一致しません。{difference}フローの行方を説明できません。",
    flows_unknown: "プローブからフロー数の報告がないため、エクスポーター内での損失がないとは断定できません。",
    sequence_good: "エクスポーターとコレクターの間で失われたレコードはありません({records}レコードのシーケンス番号に欠番なし)。",
    sequence_lost: "エクスポーターとコレクターの間で{lost}レコードが失われました(シーケンス番号の欠番{gaps}か所)。",
    sequence_unknown: "この期間のセッションの記録はありません。",
    gaps_good: "すべてのエクスポーターからデータを途切れなく受信しました。",
    gaps_some: "エクスポーターからのデータが途絶えた時間帯が{count}回、合計{duration}ありました。",
    gaps_unknown: "この期間にデータを送信したエクスポーターはありません。",
    replayed: "この期間のフローは別の時刻({window})に届きました。キャプチャファイルを再生した場合や、プローブがコレクターに接続できなかった場合などが該当します。以下のセッションと計数は、受信した時刻のものです。",
    flows_waiting: "期間中の最後の報告の時点で、{waiting}フローがプローブのスプールで送信を待っていました。本レポートには、作成時までに届いたものが含まれています。",
    interrupted_killed: "プローブ{exporter}は{from}から{to}まで({duration})計測していません。強制終了されたため、キャッシュ内のフローは失われました。",
    interrupted_stopped: "プローブ{exporter}は{from}から{to}まで({duration})計測していません。停止の操作によるものです。",
    interrupted_more: "プローブが計測していなかった時間帯がほかに{count}回ありました。",
    interrupted_short: "計測なし:{from} – {to}({duration})",
    equation_packets: "パケット",
    equation_flows: "フロー",
    on_wire: "回線上",
    metered: "計測",
    dropped: "破棄",
    ignored: "対象外(IP以外など)",
    ended: "終了",
    delivered: "配信済み",
    spooled: "プローブのスプールで待機中",
    left_in_spool: "次回の起動へ持ち越し",
    in_flight: "処理中",
    carried_over: "期首の処理中・待機中",
    other_terms: "その他",
    books: "プローブの計数",
    books_note: "対象期間についてプローブが報告した値です。プロセスごとに、破棄と対象外をそれぞれの名前で示します。deliveredはコレクターが保存を確認した数(UDPの場合は送信した数)、left_in_spoolは終了時にスプールへ残した数です。残したものは次回の起動で配信され、再度計上されることはありません。",
    metering: "計測",
    exporting: "エクスポート",
    process: "プロセス",
    balanced: "一致",
    not_balanced: "不一致",
    incomplete: "合計の報告なし",
    restarts: "再起動",
    exporters: "エクスポーター",
    exporters_note: "「エクスポート数」は期間中にプローブが配信したフローレコード数(以前の起動でスプールに残されたものを除く)、「受信数」は本レポートに含まれるフロー数です。フローは開始時刻で集計するため、スプールに残されていたフローと、配信が別の期間になったフローの分だけ両者に差が出ます。",
    exporters_note_interrupted: "濃い印は、プローブ自体が計測していなかった時間帯です。",
    exporter: "エクスポーター",
    seen: "最初と最後のデータ",
    coverage: "受信状況",
    exported: "エクスポート数",
    received: "受信数",
    lost: "欠損",
    gap_list: "途絶えた時間帯",
    omitted: "ほか{count}件",
    sessions: "セッション",
    sessions_note: "エクスポーターとコレクターの間のトランスポートセッション(全{count}件、新しい順)です。数値は対象期間のもので、再送されたレコードは一度だけ数えています。",
    transport: "方式",
    start: "開始",
    end: "終了",
    running: "継続中",
    last_seen: "最終確認 {time}",
    messages: "メッセージ",
    records: "レコード",
    gaps: "欠番",
    ended_note: "備考",
    statistics: "エクスポートプロセス",
    statistics_note: "各エクスポートプロセスが自ら報告した値です。",
    uptime: "稼働時間",
    octets_sent: "送信量",
    not_sent_flows: "未送信フロー",
    notes: "本レポートの見方",
    notes_local: "拠点内ネットワーク:{networks}。マルチキャストとブロードキャストは拠点内として扱います。",
    notes_flows: "データ量はフローの継続時間に均等に配分して集計し、フロー数は開始時刻の属する期間に計上しています。",
    notes_octets: "データ量はIPパケット(ヘッダーを含み、イーサネットフレームを含まない)のバイト数です。単位は10進です(1 MB = 1,000,000 B)。",
    notes_percentile: "95パーセンタイルは{sample}のうち上位5%を除いた最大値です。",
    made_by: "Nagareにより作成",
};

#[cfg(test)]
mod tests {
    use super::*;

    fn placeholders(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> = text.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    #[test]
    fn languages_say_the_same() {
        for ((name, english), (_, japanese)) in EN.all().into_iter().zip(JA.all()) {
            assert!(!japanese.is_empty(), "{name}");
            assert_eq!(placeholders(english), placeholders(japanese), "{name}");
        }
    }

    #[test]
    fn values_are_not_filled_again() {
        assert_eq!(fill("{a} and {b}{c}", &[("a", "{b}"), ("b", "2")]), "{b} and 2");
        assert_eq!(fill("open { brace", &[]), "open  brace", "an open brace is dropped, the text is kept");
    }

    #[test]
    fn periods_and_durations() {
        let tz = TimeZone::get("Asia/Tokyo").expect("the time zone database (tzdata) is installed");
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond();
        let day = Period { from_ms: at("2026-11-23T00:00:00+09:00"), to_ms: at("2026-11-24T00:00:00+09:00") };
        assert_eq!(EN.period(day, &tz), "23 November 2026");
        assert_eq!(JA.period(day, &tz), "2026年11月23日");
        let month = Period { to_ms: at("2026-12-01T00:00:00+09:00"), ..day };
        assert_eq!(JA.period(month, &tz), "2026年11月23日 – 2026年11月30日");
        let hours = Period { to_ms: at("2026-11-23T10:30:00+09:00"), ..day };
        assert_eq!(EN.period(hours, &tz), "23 Nov 2026, 00:00 – 10:30");
        assert_eq!(JA.duration(90_061_000), "1日 1時間");
        assert_eq!(EN.duration(3_600_000), "1\u{a0}h");
        assert_eq!(EN.duration(0), "0\u{a0}s");
        assert_eq!(EN.duration(-5), "0\u{a0}s");
    }
}
